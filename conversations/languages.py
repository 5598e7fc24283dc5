"""Which language an answer is in, as far as it can be told without a model: by its script, and in Latin letters by the
small words that every sentence has.

Libraries that know a hundred languages take 100 MB and seconds to load, and none of them knows Hindi or Tamil in Latin
letters, which is what users and personas write most.
"""

from collections.abc import Mapping

import regex

# By script alone: Marathi counts as Hindi, Assamese as Bengali, and so on.
SCRIPTS: Mapping[str, str] = {
    "Hindi": r"\p{Devanagari}",
    "Tamil": r"\p{Tamil}",
    "Telugu": r"\p{Telugu}",
    "Kannada": r"\p{Kannada}",
    "Malayalam": r"\p{Malayalam}",
    "Bengali": r"\p{Bengali}",
    "Gujarati": r"\p{Gujarati}",
    "Punjabi": r"\p{Gurmukhi}",
    "Odia": r"\p{Oriya}",
    "Urdu": r"\p{Arabic}",
    "Russian": r"\p{Cyrillic}",
    "Korean": r"\p{Hangul}",
    "Japanese": r"[\p{Hiragana}\p{Katakana}]",
    "Chinese": r"\p{Han}",
    "Thai": r"\p{Thai}",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Without those that are as small in Spanish, French or Portuguese ("a", "me", "no").
SMALL_WORDS: Mapping[str, frozenset[str]] = {
    "English": _words("""
        the and or but of to in on at for with from by is are was were be been am i you she it we they my your
        his her our their this that these those what which who how why when where not yes does did have had can
        could will would should if him them us it's don't i'm you're let's let there here just more
    """),
    "Hinglish": _words("""
        hai hain ho hoon hu tha thi hoga hogi nahi nahin nhi na haan ji kya kyu kyun kyon kaise kaisa kaisi kab
        kahan kaun kitna kitne aur ya lekin par mein main mai hum tum aap mera meri mere tera teri tumhara aapka
        aapki aapko mujhe tumhe humein ka ki ke ko se ne toh bhi hi abhi aaj kal bahut bohot thoda accha acha
        theek thik kar karo karna karte karenge raha rahe rahi gaya gayi yaar bhai wala wali yeh ye woh wo iska
        uska sab kuch
    """),
    "Tanglish": _words("""
        naan nee neenga naanga avan aval avanga enna epdi eppadi yaaru enga eppo yen illa illai irukku iruku
        irukken iruken irukkum aama aamaa ama seri romba konjam nalla nallaa vanakkam da di dei kanna kannu pa ma
        ah um la panna pannu pannunga pannalam sollu sollunga vaanga ponga po va venum vendam thaan dhaan inga
        anga idhu adhu ithu athu ungal unga enakku unakku ungalukku innaikku naalaikku paaru paarunga saptiya
        saapidu
    """),
    "Spanish": _words("""
        el los las una unos y pero por con sin del al es está estás son eres soy estoy hay qué quién cómo cuándo
        dónde muy más también sí yo tú él ella usted nosotros mi tu su te lo le nos hoy aquí ahora hola bien para
        porque puedes quiero tienes tengo hacer este esta esto
    """),
    "Portuguese": _words("""
        o os uma uns e mas por com sem do da dos das ao é está são sou estou há não quem como quando onde muito
        mais também sim eu você ele ela nós meu minha seu sua te lhe hoje aqui agora olá bem para porque pode quero
        tem tenho fazer isso isto este essa
    """),
    "French": _words("""
        le les une des et mais ou par avec sans du au est sont suis es êtes il elle nous vous je tu qui que quoi
        comment quand où très plus aussi oui non mon ma ton ta son sa te lui aujourd'hui ici maintenant bonjour
        bien pour parce peux veux avez ai faire ce cette ça c'est
    """),
}
LANGUAGES = (*SMALL_WORDS, *SCRIPTS)
SHARE = 0.15  # of all words; usual is 0.4
TOO_SHORT = 4  # words in Latin letters that may hold no small word
_WORD = regex.compile(r"\p{Latin}[\p{Latin}\p{M}]*(?:['’]\p{Latin}+)?")
_SCRIPTS = {name: regex.compile(script) for name, script in SCRIPTS.items()}
_LATIN = regex.compile(r"\p{Latin}")


def known_as(name: str) -> str:
    """The language of this name, however it is written; blank if there is none."""
    return next((one for one in LANGUAGES if one.casefold() == name.strip().casefold()), "")


def language_of(text: str) -> str:
    """Blank if it can't be told. Where scripts are mixed, the one with the most letters counts."""
    letters = {name: len(script.findall(text)) for name, script in _SCRIPTS.items()}
    if letters["Japanese"]:
        letters["Japanese"] += letters["Chinese"]  # written with both
    name = max(letters, key=lambda one: letters[one])
    latin = len(_LATIN.findall(text))
    return name if letters[name] > latin else _by_small_words(text)


def is_in(text: str, language: str) -> bool:
    """A few words in Latin letters that tell nothing are taken for the language that is expected."""
    found = language_of(text)
    if not found and language in SMALL_WORDS:
        return 0 < len(_WORD.findall(text)) <= TOO_SHORT
    return found == language


def _by_small_words(text: str) -> str:
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    hits = {name: sum(word in small for word in words) for name, small in SMALL_WORDS.items()}
    name = max(hits, key=lambda one: hits[one])
    return name if words and hits[name] >= max(1, len(words) * SHARE) else ""
