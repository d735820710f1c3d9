#!/usr/bin/env python3
"""Writes a corpus of five domains from text that a Debian system has or can install.

    prepare_corpus.py OUT [--cap BYTES]

    OUT/english    manual pages, sections 2-5 and 7                       packages manpages, manpages-dev
    OUT/german     manual pages in German                                 package manpages-de
    OUT/russian    manual pages in Russian                                package manpages-ru
    OUT/python     standard library of the Python that runs this script   package libpython3-stdlib
    OUT/metamath   statements of set.mm, without proofs                   package metamath-databases

The script installs nothing; it names the packages that are missing. It takes the pages of every installed package, so
machines differ: the digest of a domain tells whether two corpora are the same. One file is one document. Each domain is
cut to CAP bytes; the documents are picked in the order of the hashes of their names, which no folder's order changes.
The texts have licences of their own: read them here, do not redistribute them.
"""

import argparse
import gzip
import hashlib
import re
import sys
import sysconfig
from pathlib import Path

MAN = Path("/usr/share/man")
SET_MM = Path("/usr/share/metamath/databases/set.mm")
PACKAGES = {
    "english": "manpages manpages-dev",
    "german": "manpages-de",
    "russian": "manpages-ru",
    "python": "libpython3-stdlib",
    "metamath": "metamath-databases",
}
# Fewer documents than this mean that the packages are missing.
MIN_DOCUMENTS = 50
# Sections that are the same on every page.
BOILERPLATE = re.compile(
    r"^(COLOPHON|REPORTING BUGS|COPYRIGHT|ÜBERSETZUNG|FEHLER MELDEN|ПЕРЕВОД|СООБЩЕНИЕ ОБ ОШИБКАХ|АВТОРСКИЕ ПРАВА)"
)
# Roff escapes that stand for text; every other escape vanishes.
NAMED = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "•", "em": "—", "en": "–", "hy": "-",
    "co": "©", "ha": "^", "ti": "~", "rs": "\\", "ga": "`", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "!=": "≠",
    "mu": "×", "+-": "±", "Fo": "«", "Fc": "»", "Bq": "„", "bq": "‚", "or": "|", "mc": "µ", "de": "°", "sc": "§",
    "*m": "μ", "*p": "π", "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", "'e": "é", "at": "@", "sh": "#", "Do": "$",
}
ESCAPE = re.compile(
    r"\\(?:f(?:\[[^]]*\]|\(..|.)|s[-+]?(?:\[[^]]*\]|\d+)|[mM](?:\[[^]]*\]|\(..|.)"
    r"|\*(?:\[(?P<s1>[^]]*)\]|\((?P<s2>..)|(?P<s3>.))|\[(?P<c1>[^]]*)\]|\((?P<c2>..)|[hvwlLDoNbz]'[^']*'"
    r"|n(?:\[[^]]*\]|\(..|.)|\".*|(?P<one>.)|$)"
)
LETTER, CYRILLIC = re.compile(r"[^\W\d_]"), re.compile(r"[\u0400-\u04ff]")
ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "'": "´", "`": "`", ".": ".", "t": "\t"}


def unescape(line):
    """Replaces roff escapes by text."""

    def text(match):
        name = match["c1"] or match["c2"] or match["s1"] or match["s2"] or match["s3"]
        if name:
            if re.fullmatch(r"u[0-9A-F]{4,5}", name):
                return chr(int(name[1:], 16))
            return NAMED.get(name, "")
        return ONE.get(match["one"] or "", "")

    return ESCAPE.sub(text, line)


def arguments(line):
    """Splits the arguments of a macro."""
    line = re.sub(r'\\".*', "", line)
    pairs = re.findall(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s"\\])(?:\\.|[^\s\\])*)', line)
    return [quoted or bare for quoted, bare in pairs]


def page_text(source):
    r"""Strips a manual page that uses the man macros; None for other pages.

    >>> page_text('.TH A 1\n.SH NAME\na \\- do \\fIit\\fP\n.PP\nSee\n.BR a (1)\n.SH COLOPHON\nx')
    'A(1)\n\nNAME\na - do it\n\nSee a(1)\n'
    """
    lines, out, literal, skip_to, boilerplate = source.split("\n"), [], False, None, False
    if any(line.startswith((".Dd", ".so ")) for line in lines[:80]):
        return None

    def put(text):
        if boilerplate or not text:
            return
        if literal or not out or out[-1].endswith("\n"):
            out.append(text + ("\n" if literal else ""))
        else:
            out.append(" " + text)

    def end_line(count):
        joined = "".join(out[-2:])
        out.extend(["\n"] * (count - (len(joined) - len(joined.rstrip("\n")))) if out else [])

    tag = False
    for line in lines:
        if skip_to:
            skip_to = None if line.startswith(skip_to) else skip_to
            continue
        if not line.startswith((".", "'")):
            if line.strip():
                put(unescape(line).rstrip() if literal else " ".join(unescape(line).split()))
            else:
                end_line(2)
        else:
            name, _, rest = line[1:].strip().partition(" ")
            words = [unescape(word.replace('""', '"')) for word in arguments(rest)]
            if name in ("SH", "SS"):
                title = " ".join(words)
                boilerplate = bool(BOILERPLATE.match(title)) if name == "SH" else boilerplate
                end_line(2)
                literal = False
                put(title)
                end_line(1)
            elif name in ("PP", "P", "LP", "TP", "TQ", "HP", "IP", "sp"):
                end_line(1 if name == "TQ" else 2)
                if name == "IP" and words:
                    put(words[0])
            elif name in ("B", "I", "SM", "SB"):
                put(" ".join(words))
            elif name in ("BR", "BI", "IR", "IB", "RB", "RI"):
                put("".join(words))
            elif name in ("nf", "EX"):
                end_line(1)
                literal = True
            elif name in ("fi", "EE"):
                literal = False
            elif name == "br":
                end_line(1)
            elif name in ("TS", "EQ"):
                skip_to = "." + {"TS": "TE", "EQ": "EN"}[name]
            elif name in ("de", "ig", "am"):
                skip_to = ".."
            elif name == "TH" and len(words) > 1:
                put(f"{words[0]}({words[1]})")
            elif name in ("UR", "MT"):
                put(" ".join(words))
            tag = name in ("TP", "TQ")
            continue
        if tag:
            end_line(1)
            tag = False
    text = "".join(out)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pages(folder, sections, seen, script=None):
    """Documents of the manual pages below a folder.

    Long paragraphs are left out where an earlier page has them (`seen`; the listings of translated pages are those of
    the English ones), or where less than a third of their letters are of `script` (not translated).
    """
    found = {}
    for path in sorted(path for section in sections for path in (MAN / folder / f"man{section}").glob("*.gz")):
        text = None if path.is_symlink() else page_text(gzip.decompress(path.read_bytes()).decode())
        if text is None:
            continue
        kept = []
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            foreign = script and 3 * len(script.findall(key)) < len(LETTER.findall(key))
            if len(key) < 80 or not (foreign or key in seen):
                kept.append(paragraph)
            seen.add(key)
        text = "\n\n".join(kept).strip() + "\n"
        if len(text) > 800:
            found[path.name.removesuffix(".gz") + ".txt"] = text
    return found


def python():
    """Documents of the standard library without its tests and its tables."""
    root, found = Path(sysconfig.get_path("stdlib")), {}
    unwanted = {"test", "tests", "idle_test", "encodings", "pydoc_data", "dist-packages", "site-packages", "ensurepip"}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).parts
        if unwanted & set(name) or "_sysconfigdata" in path.name or name == ("html", "entities.py"):
            continue
        text = path.read_text("utf-8", "replace")
        if len(text) > 800 and "\ufffd" not in text:
            found["__".join(name)] = text
    return found


def metamath():
    """Documents of a hundred statements: comment and formula, without proof and date."""
    source, found, statements = SET_MM.read_text("ascii") if SET_MM.exists() else "", {}, []
    pattern = re.compile(r"\$\(((?:(?!\$\)).)*)\$\)\s+(\S+) \$([ap])\s(.*?)\$[=.]", re.S)
    for comment, label, kind, formula in pattern.findall(source):
        comment = re.sub(r"\((Contributed|Revised|Proof shortened|Proof modif|New usage)[^()]*\)", "", comment)
        statements.append(f"{label} ${kind} {' '.join(formula.split())}\n{' '.join(comment.split())}\n")
    for start in range(0, len(statements), 100):
        found[f"set-{start // 100:04}.txt"] = "\n".join(statements[start : start + 100])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that receives one sub-folder a domain")
    parser.add_argument("--cap", type=int, default=4_500_000, help="bytes a domain (default: %(default)s)")
    options = parser.parse_args()
    seen = set()
    domains = {
        "english": pages("", "23457", seen),
        "german": pages("de", "12345678", seen),
        "russian": pages("ru", "12345678", seen, CYRILLIC),
        "python": python(),
        "metamath": metamath(),
    }
    missing = [PACKAGES[name] for name, found in domains.items() if len(found) < MIN_DOCUMENTS]
    if missing:
        sys.exit(f"too few documents; install: apt-get install {' '.join(missing)}")
    for name, found in domains.items():
        folder, size, count, digest = options.out / name, 0, 0, hashlib.sha256()
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(found, key=lambda file: hashlib.sha256(file.encode()).digest()):
            data = found[file].encode()
            if size + len(data) <= options.cap:
                (folder / file).write_bytes(data)
                digest.update(data)
                size, count = size + len(data), count + 1
        print(f"{name:10} {count:5} documents {size:9} bytes, digest {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
