"""The verbs about the people of a labeling room: accounts, tasks in hand, answers withdrawn."""

from typing import Annotated

import typer

from pipeline.cli.errors import verb

Store = Annotated[
    str, typer.Argument(help="A run's folder, or the store: a path or a database URL.")
]


@verb
def accounts(
    store: Store,
    name: Annotated[
        str | None, typer.Argument(help="The account; without it all are listed.")
    ] = None,
    reset_password: Annotated[
        bool, typer.Option("--reset-password", help="Print a new password, and end its sessions.")
    ] = False,
    is_open: Annotated[
        bool | None, typer.Option("--open/--close", help="Open the account again, or close it.")
    ] = None,
) -> None:
    """List the accounts of a room; open or close one, or give it a new password."""
    from pipeline.labeling import people

    print("\n".join(people.accounts(store, name, reset_password=reset_password, is_open=is_open)))


@verb
def leases(
    store: Store,
    release: Annotated[
        str | None, typer.Option(metavar="NAME", help="Hand out again what this person holds.")
    ] = None,
) -> None:
    """List the tasks that annotators hold now, the longest idle first."""
    from pipeline.labeling import people

    print("\n".join(people.leases(store, release)))


@verb
def withdraw(
    store: Store,
    annotator: Annotated[str, typer.Argument(help="Whose answers, by name.")],
    restore: Annotated[
        bool, typer.Option("--restore", help="Count them again, where nobody else has answered.")
    ] = False,
) -> None:
    """Withdraw a person's answers and hand the tasks out again; --restore takes that back."""
    from pipeline.labeling import people

    print(people.restore(store, annotator) if restore else people.withdraw(store, annotator))
