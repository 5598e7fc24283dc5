#!/usr/bin/env bash
# Cuts a release: dates the top entry of CHANGELOG.md, writes the schema anew, commits and tags. `make release` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() { echo "$1" >&2; exit 1; }

heading='^## ([0-9]+\.[0-9]+\.[0-9]+) – '
[ -z "$(git status --porcelain)" ] || refuse "There are changes that aren't committed."
top=$(grep -m 1 '^## ' CHANGELOG.md || true)
[[ $top =~ ${heading}unreleased$ ]] || refuse 'CHANGELOG.md has no top entry such as "## 1.2.3 – unreleased".'
version=${BASH_REMATCH[1]}
before=$(grep -E "${heading}" CHANGELOG.md | sed -nE "2s/${heading}.*/\1/p")
if [ -n "$before" ]; then
  highest=$(printf '%s\n' "$before" "$version" | sort --version-sort | tail -n 1)
  { [ "$version" != "$before" ] && [ "$highest" = "$version" ]; } || refuse "$version isn't above $before."
fi
awk '/^## /{entries++} entries == 1 && /^- /{found = 1} END{exit !found}' CHANGELOG.md || refuse "The entry of $version says nothing."
if git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null; then refuse "There is a v$version already."; fi

sed -i "0,/^## .*unreleased$/s//## $version – $(date -u +%F)/" CHANGELOG.md
make --no-print-directory schema
cp docs/api/openapi.json docs/api/released.json # what clients rely on from now on
git add CHANGELOG.md docs/api
git commit --quiet --message "Release $version"
git tag --annotate "v$version" --message "Release $version"
echo "Released $version. Publish it: git push --follow-tags"
