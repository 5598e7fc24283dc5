"""Prints the settings that the environment has, as a settings.env: what .env.example names, and what VARIABLES (JSON)
holds of it. A secret wins over a variable. For deliver.sh; it needs nothing but Python."""

import json
import os
import re
import sys
from pathlib import Path

# The server's own: whatever it is called there, and the code itself.
NOT_HERE = {"ENVIRONMENT", "APP_VERSION", "ENV_FILE"}
OTHER = {"DEPLOY", "SSH_PORT", "DEPLOY_ROOT", "PUBLIC_URL"}


def names() -> list[str]:
    """Of the service, and what Docker Compose asks for besides."""
    here = Path(__file__).resolve().parent
    found = re.findall(r"^#?\s*([A-Z][A-Z0-9_]+)=", (here.parent / ".env.example").read_text("utf-8"), re.MULTILINE)
    for file in sorted(here.glob("compose*.yaml")):
        found += re.findall(r"\$\{([A-Z][A-Z0-9_]+)", file.read_text("utf-8"))
    return [name for name in dict.fromkeys(found) if name not in NOT_HERE]


def line(name: str, value: str) -> str:
    """Understood alike by the service and by Docker Compose: also $, quotes, line ends and single backslashes. Of two
    backslashes, and of one before a quote, Compose makes something else than we do."""
    if "\0" in value or value.endswith("\\") or "\\\\" in value or "\\'" in value:
        wrong = "a zero byte, two backslashes in a row, or one before a single quote or at its end"
        raise SystemExit(f"NOT DEPLOYED: {name} holds {wrong}.")
    escaped = value.replace("'", "\\'")
    return f"{name}='{escaped}'\n"


def main() -> None:
    variables = json.loads(os.environ.get("VARIABLES") or "{}")
    known = names()
    for name in sorted(variables.keys() - set(known) - OTHER - NOT_HERE):
        sys.stderr.write(f"The variable {name} is no setting: it is left out.\n")
    values = {name: os.environ.get(name) or variables.get(name) or "" for name in known}
    sys.stdout.writelines(line(name, value) for name, value in values.items() if value)


if __name__ == "__main__":
    main()
