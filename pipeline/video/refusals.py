"""Reasons why a video cannot be fetched, from the messages of yt-dlp.

yt-dlp tells causes apart by words alone: its own, YouTube's, and the words of the network libraries.
"""

from __future__ import annotations

import re

from pipeline.core.errors import Retry, Skip

LONGEST = 300  # characters of a message that are kept
UNKNOWN = "video_error"

# The first row that fits wins. So:
# - addresses and names of strangers (claimants, levels of membership) may hold any words: rows whose messages quote
#   them come first, and look at the whole sentence;
# - "blocked it in your country on copyright grounds" is about the country, so regions come before removals;
# - YouTube puts "Video unavailable." before most causes, and "Sign in" behind many: both alone come last of its own;
# - what the network says comes after what YouTube says; a body cut off or stalled before connections that broke or timed
#   out, as they share their words.
_ROWS = (
    (
        "not_a_video",
        r"^Unsupported URL:|^No suitable extractor|is not a valid URL$|^Incomplete YouTube ID|^Invalid URL:"
        r"|^Did you forget to quote the URL",
    ),
    (
        "region_blocked",
        r"in your (?:country|region|location)\b|from your location|geo.?restrict|network administrator"
        r"|HTTP Error 451\b",
    ),
    (
        "video_removed",
        r"\b(?:has been|was) (?:removed|deleted|taken down)\b|no longer available|video does(?: not|n't) exist"
        r"|account\b.{0,100}\bterminated|closed (?:their|his|her) YouTube account|copyright (?:claim|grounds|infringement)",
    ),
    (
        "members_only",
        r"members[- ]only|Join this channel|this channel's members|Premium members|requires payment to watch",
    ),
    ("video_private", r"private video|video is private"),
    (
        "age_restricted",
        r"confirm your age|age[- ]restricted|age[- ]verification"
        r"|inappropriate (?:or offensive )?(?:for some users|to some audiences)|suicide or self-harm",
    ),
    (
        "bot_check",
        # the bare "Please sign in" concerns the IP address, whatever the video
        r"you're not a bot|captcha|unusual traffic|IP is likely being blocked|^Please sign in(?:\.|$)",
    ),
    (
        "rate_limited",
        # without "try again later" it is an account that YouTube holds back for a while, again for every video
        r"rate.?limited|content isn't available|too many requests|HTTP Error (?:402|408|425|429)\b",
    ),
    (
        "not_ready",
        r"live event (?:will begin|has ended)|\bpremieres? (?:in|on|will)\b|not currently live|check back later"
        r"|processing this video|still (?:being )?process",
    ),
    ("drm_protected", r"video is DRM protected|use DRM protection"),
    (
        "client_refused",  # YouTube refuses the client that yt-dlp poses as, for any video
        r"not available on this (?:app|device)|page needs to be reloaded|supported in this application",
    ),
    (UNKNOWN, r"Playback on other websites|playback on certain sites"),  # for this video; other clients may show it
    (
        "video_unavailable",
        r"video (?:is )?(?:unavailable|not available)|video isn't available|live stream recording is not available",
    ),
    ("login_required", r"\bsign in\b|\blog in\b|logged[- ]in|login details|registered users"),
    (
        "no_js_runtime",
        r"(?:n challenge|signature) solving failed|No supported JavaScript runtime|No usable challenge solver",
    ),
    ("no_format", r"Requested format is not available|No video formats found|Only images are available"),
    ("server_error", r"API page: HTTP Error 404\b"),  # YouTube's interface knows 404 as a passing disorder
    ("missing", r"HTTP Error (?:404|410)\b"),
    ("forbidden", r"HTTP Error (?:401|403)\b"),
    ("server_error", r"HTTP Error 5\d\d\b"),
    (
        "cut_off",
        r"\d bytes read|IncompleteRead|Did not get any data blocks|content too short|bytes, expected \d+ bytes"
        r"|downloaded file is empty|Incomplete data received|remaining to read|HTTP Error 416\b",
    ),
    ("timeout", r"Read timed out|read operation timed out|\d bytes received|too slow|below throttle limit"),
    (
        "connection",
        r"timed out|Connection (?:aborted|broken|refused|reset)|Failed to (?:resolve|establish)|Remote end closed"
        r"|Name or service not known|name resolution|getaddrinfo|unreachable|No route to host|Broken pipe"
        r"|\bSSL\b|\bTLS\b|certificate|EOF occurred|proxy|HTTP Error 407\b|TransportError|urlopen error"
        r"|Failed to extract any player response",  # none of YouTube's interfaces answered
    ),
)
TABLE = tuple((re.compile(words, re.IGNORECASE), reason) for reason, words in _ROWS)

SKIPPED = frozenset(  # trying again would end the same way
    {
        "video_removed",
        "video_private",
        "members_only",
        "age_restricted",
        "region_blocked",
        "drm_protected",
        "no_format",
        "missing",
        "not_a_video",
        "video_unavailable",
        "login_required",
    }
)
REASONS = frozenset(reason for _, reason in TABLE)

_COOKIES = "--cookies FILE of a browser that is logged in"
NEXT = {  # reason -> what a user can do about it
    "age_restricted": _COOKIES,
    "bot_check": _COOKIES,
    "login_required": _COOKIES,
    "members_only": _COOKIES,
    "rate_limited": "a lower --videos-per-hour, or wait an hour",
    "client_refused": "a newer yt-dlp",
    "no_js_runtime": "lvsm-data doctor says how to get one",
    "region_blocked": "another country or network",
}

_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # surrogates: UTF-8 cannot hold them
_HEAD = re.compile(r"^(?:ERROR: *)*(?:\[download\] Got error: *|\[[\w:+.-]+\] *(?:[\w-]+: +)?)?")
_TAIL = re.compile(  # the cause once more, and yt-dlp's advice, whose flags are not lvsm-data's
    r" ?\(caused by .*|[ ;,]{0,2}please report this issue on .*|[ .]{0,2}\bUse --(?:cookies|list-formats|username).*"
    r"|[ .]{0,2}\bIt is recommended to use `-t sleep`.*|[ .]{0,2}\bYou might want to use a VPN.*",
    re.IGNORECASE,
)


def refusal(message: str, *, status: int | None = None, has_runtime: bool = True) -> Skip | Retry:
    """Exception for an error of yt-dlp: Skip where trying again would end the same way, Retry where it may not.

    message: the error's text. status: the HTTP status, if any. has_runtime: yt-dlp had a usable JavaScript runtime.
    The detail is one line: the message without yt-dlp's trimmings, and the next step where a user has one.
    """
    said = _one_line(message)
    told = _TAIL.sub("", said) or (f"HTTP {status}" if status else "yt-dlp gives no reason")
    if len(told) > LONGEST:
        told = f"{told[: LONGEST - 1]}…"
    reason = _reason(said, status)
    if reason == "no_format" and not has_runtime:
        reason = "no_js_runtime"
    step = NEXT.get(reason, "")
    if reason == "video_unavailable" and not has_runtime:  # videos made for children look so to the only client left
        step = "try it with a JavaScript runtime: lvsm-data doctor says how to get one"
    detail = f"{told}; next: {step}" if step else told
    return Skip(reason, detail) if reason in SKIPPED else Retry(reason, detail)


def _one_line(message: str) -> str:
    plain = _UNPRINTABLE.sub(" ", _COLOURS.sub("", message))
    return _HEAD.sub("", " ".join(plain.split()))


def _reason(said: str, status: int | None) -> str:
    text = said.replace("’", "'")  # YouTube writes both apostrophes
    answer = f"HTTP Error {status}"
    return next((reason for words, reason in TABLE if words.search(text) or words.search(answer)), UNKNOWN)
