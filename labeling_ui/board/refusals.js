// Why the server refuses, in other languages: its English sentences as patterns, what varies as {1}, {2}.
const REFUSALS = {
  de: [
    [/^(\d+) of (\d+) outputs are ranked$/, "{1} von {2} Ausgaben sind gereiht"],
    [/^every output needs a quality from 1 to 7$/, "jede Ausgabe braucht eine Güte von 1 bis 7"],
    [/^'(.*)' is (.*), expected (\d+) to (\d+)$/, "„{1}“ ist {2}, erwartet wird {3} bis {4}"],
    [/^flags (.*) are not asked for$/, "nach {1} wird nicht gefragt"],
    [/^the prompt is missing$/, "die Aufgabe fehlt"],
    [/^the response is missing$/, "die Antwort fehlt"],
    [/^a few-shot prompt needs (\d+) or more whole pairs$/, "es braucht mindestens {1} ganze Paare"],
    [/^the instruction is missing$/, "die Anweisung fehlt"],
    [/^this task is not one of yours$/, "diese Aufgabe ist nicht Ihre"],
    [/^others have taken this task meanwhile$/, "andere haben diese Aufgabe inzwischen übernommen"],
    [/^there is no such task$/, "diese Aufgabe gibt es nicht"],
    [/^the prompt is empty$/, "die Aufgabe ist leer"],
    [/^the prompt is longer than (\d+) characters$/, "die Aufgabe hat mehr als {1} Zeichen"],
    [/^the policy is busy with others' prompts; try again$/, "das Modell ist mit anderen Aufgaben beschäftigt; bitte noch einmal"],
    [/^this is for the owner of the room$/, "das steht nur dem Inhaber des Raums zu"],
    [/^an invitation is for an annotator or a reviewer$/, "eingeladen wird zum Bewerten oder zum Prüfen"],
    [/^this is your own account$/, "das ist Ihr eigenes Konto"],
    [/^the daily limit is (.*), expected a whole number from 1$/, "die Tagesgrenze ist {1}, erwartet wird eine ganze Zahl ab 1"],
    [/^there is no account '(.*)'$/, "es gibt kein Konto „{1}“"],
    [/^this is for reviewers$/, "das steht nur Prüfern zu"],
    [/^this draft is too long to be kept$/, "dieser Entwurf ist zu lang, um behalten zu werden"],
    [/^this room has no policy to ask$/, "dieser Raum hat kein Modell, das man fragen kann"],
  ],
};
// A sentence that is not known, such as one about a request that no page sends, stays as it is.
function refusal(said) {
  for (const [pattern, text] of REFUSALS[language] || []) {
    const found = said.match(pattern);
    if (found) return text.replace(/[{](\d)[}]/g, (_, i) => found[i]);
  }
  return said;
}
