"""What yt-dlp's messages mean: as they were reported by its users, as its source writes them, and as it raises them here."""

from __future__ import annotations

import gc
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yt_dlp
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.errors import Retry, Skip
from pipeline.video.refusals import LONGEST, NEXT, REASONS, SKIPPED, refusal
from pipeline.video.ytdlp import REFUSED
from tests.hub import Hub

SOURCE = Path(yt_dlp.__file__).parent
LOGIN = (
    " Use --cookies-from-browser or --cookies for the authentication. See  "
    "https://github.com/yt-dlp/yt-dlp/wiki/FAQ#how-do-i-pass-cookies-to-yt-dlp  for how to manually pass cookies. Also see  "
    "https://github.com/yt-dlp/yt-dlp/wiki/Extractors#exporting-youtube-cookies  for tips on effectively exporting "
    "YouTube cookies"
)
REPORT = (
    "; please report this issue on  https://github.com/yt-dlp/yt-dlp/issues?q= , filling out the appropriate issue "
    "template. Confirm you are on the latest version using  yt-dlp -U"
)
SESSION = (
    "This content isn't available, try again later. The current session has been rate-limited by YouTube for up to an "
    "hour. It is recommended to use `-t sleep` to add a delay between video requests to avoid exceeding the rate limit. "
    "For more information, refer to  "
    "https://github.com/yt-dlp/yt-dlp/wiki/Extractors#this-content-isnt-available-try-again-later"
)
SOLVING = (
    "[youtube] mVzLoTowtPM: n challenge solving failed: Some formats may be missing. Ensure you have a supported "
    "JavaScript runtime and challenge solver script distribution installed. Review any warnings presented before this "
    "message. For more details, refer to  https://github.com/yt-dlp/yt-dlp/wiki/EJS"
)
VPN = "\nYou might want to use a VPN or a proxy server (with --proxy) to workaround."
NO_FORMAT = "Requested format is not available. Use --list-formats for a list of available formats"
RED = "\x1b[0;31mERROR:\x1b[0m "

MESSAGES = [  # verbatim, ids apart
    # removed
    ("ERROR: [youtube] FtLxKSQp2GA: Video unavailable. This video has been removed by the uploader", "video_removed"),
    (RED + "[youtube] C5uMV-iK3Ps: Video unavailable. This video is no longer available because the YouTube account "
     "associated with this video has been terminated.", "video_removed"),
    ("ERROR: [youtube] 2yzMUs3badc: Video unavailable. This video is no longer available because the uploader has closed "
     "their YouTube account.", "video_removed"),
    ("ERROR: [youtube] 2yzMUs3badc: Video unavailable. This video is no longer available due to a copyright claim by "
     "Captcha Private Video Ltd.", "video_removed"),
    (RED + "[youtube] 1yipP37b58c: This video has been removed for violating YouTube's Terms of Service", "video_removed"),
    ("ERROR: [youtube] a: This video has been removed for violating YouTube's policy on hate speech.", "video_removed"),
    ("ERROR: This video contains content from UMG, who has blocked it on copyright grounds.", "video_removed"),
    ("The YouTube account associated with this video has been terminated due to multiple third-party notifications of "
     "copyright infringement.", "video_removed"),
    ("ERROR: This video does not exist.", "video_removed"),
    # behind a door
    ("ERROR: [youtube] RRlosiK7QEI: Private video. Sign in if you've been granted access to this video." + LOGIN,
     "video_private"),
    ("ERROR: Content Warning. If the owner of this video has granted you access, please sign in. This video is private.",
     "video_private"),
    ("ERROR: [youtube] h7aSM88pUv8: Join this channel to get access to members-only content like this video, and other "
     "exclusive perks.", "members_only"),
    ("ERROR: [youtube] 9iVcXphPVaM: This video is available to this channel's members on level: Private Video Club (or any "
     "higher level). Join this channel to get access to members-only content and other exclusive perks.", "members_only"),
    ("ERROR: [youtube] epoGMzLgyFQ: Join this channel from your computer or Android app to get access to members-only "
     "content like this video.", "members_only"),
    ("ERROR: [youtube] NSYzJsrt2NI: This video is only available to Music Premium members", "members_only"),
    ("ERROR: This video requires payment to watch.", "members_only"),
    ("ERROR: [youtube] mJgC9LEBTuQ: Sign in to confirm your age. This video may be inappropriate for some users." + LOGIN,
     "age_restricted"),
    ("ERROR: Sign in to confirm your age\nThis video may be inappropriate for some users.", "age_restricted"),
    ("ERROR: Please sign in to view this video.", "login_required"),
    ("ERROR: [youtube] a: This video is only available for registered users." + LOGIN, "login_required"),
    # from here
    ("ERROR: [youtube] a: The uploader has not made this video available in your country\nThis video is available in "
     "Germany, Austria." + VPN, "region_blocked"),
    ("ERROR: [youtube] uf3TET0JbeM: Video unavailable. This video contains content from Rotana Holding, who has blocked it "
     "in your country on copyright grounds", "region_blocked"),
    ("ERROR: [generic] a: This video is not available from your location due to geo restriction" + VPN, "region_blocked"),
    ("ERROR: [youtube] Go5pK58afWE: Video unavailable. This video is restricted. Please check the Google Workspace "
     "administrator and/or the network administrator restrictions.", "region_blocked"),
    # us
    ("ERROR: [youtube] suAR1PYFNYA: Sign in to confirm you’re not a bot." + LOGIN, "bot_check"),
    ("ERROR: [youtube] 21NlqgLVVEA: Sign in to confirm you're not a bot. This helps protect our community. Learn more",
     "bot_check"),
    ("ERROR: [youtube] a: Video unavailable. YouTube is requiring a captcha challenge before playback", "bot_check"),
    ("ERROR: [youtube] UJ0Z8JBFIYw: All player responses are invalid. Your IP is likely being blocked by Youtube",
     "bot_check"),
    ("ERROR: [youtube] a: Please sign in." + LOGIN, "bot_check"),
    ("ERROR: [youtube] 8NxoMpXM2oI: Video unavailable. " + SESSION, "rate_limited"),
    ("ERROR: [youtube] y5W-c0UwcpQ: " + SESSION, "rate_limited"),
    ("ERROR: [youtube] qaImFO_DgAM: Video unavailable. This content isn’t available.", "rate_limited"),
    ("ERROR: [youtube] a: Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429: Too "
     "Many Requests>)", "rate_limited"),
    ("ERROR: [youtube] ViRpg0LHH8s: The page needs to be reloaded.. The page needs to be reloaded.", "client_refused"),
    ("ERROR: [youtube] wIsSI3c_WNw: The following content is not available on this app.. Watch on the latest version of "
     "YouTube.", "client_refused"),
    ("ERROR: [youtube] a: Video unavailable. Playback on other websites has been disabled by the video owner",
     "video_error"),
    # later
    ("ERROR: [youtube] CviUGzWvm6w: Premieres in 6 hours", "not_ready"),
    ("ERROR: [youtube] zDDmqpnkPy8: This live event will begin in 2 days.", "not_ready"),
    ("ERROR: [youtube] a: This live event has ended.", "not_ready"),
    ("ERROR: [youtube] a: We're processing this video. Check back later.", "not_ready"),
    # nothing to be had
    ("ERROR: [youtube] XyHm0BmtLHg: Video unavailable", "video_unavailable"),
    ("ERROR: [youtube] 5qd3nY7_eoM: This video is not available", "video_unavailable"),
    ("ERROR: a: YouTube said: This video is unavailable.", "video_unavailable"),
    ("ERROR: [youtube] jfKfPfyJRdk: This live stream recording is not available.", "video_unavailable"),
    ("ERROR: [youtube] a: This video is DRM protected", "drm_protected"),
    ("ERROR: [youtube] mVzLoTowtPM: " + NO_FORMAT, "no_format"),
    ("ERROR: [youtube] b-nO6rK8qps: No video formats found!" + REPORT, "no_format"),
    (f"{SOLVING}\nERROR: [youtube] mVzLoTowtPM: {NO_FORMAT}", "no_js_runtime"),
    (f"{SOLVING}\nERROR: [youtube] a: Private video. Sign in if you've been granted access.", "video_private"),
    # addresses
    ("ERROR: Unsupported URL: http://127.0.0.1/private-video/in your country/HTTP Error 404", "not_a_video"),
    ("ERROR: [generic] 'hello' is not a valid URL", "not_a_video"),
    ("ERROR: [youtube:truncated_id] abc: Incomplete YouTube ID abc. URL https://www.youtube.com/watch?v=abc looks truncated.",
     "not_a_video"),
    # the network
    ("ERROR: unable to download video data: HTTP Error 403: Forbidden", "forbidden"),
    ("ERROR: [generic] a: Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
     "missing"),
    ("ERROR: [youtube] a: Unable to download API page: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
     "server_error"),
    ("ERROR: [youtube] a: Unable to download API page: HTTP Error 503: Service Unavailable (caused by <HTTPError 503: Service "
     "Unavailable>)", "server_error"),
    ("ERROR: [youtube] a: Unable to download API page: HTTP Error 400: Bad Request (caused by <HTTPError 400: Bad Request>)"
     + REPORT, "video_error"),
    ("ERROR: [youtube] yJC9s4XhiRE: Failed to extract any player response" + REPORT, "connection"),
    ("ERROR: [youtube] a: Unable to download API page: HTTPSConnection(host='www.youtube.com', port=443): Failed to resolve "
     "'www.youtube.com' ([Errno -2] Name or service not known) (caused by TransportError(\"...\"))", "connection"),
    ("ERROR: unable to download video data: [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "connection"),
    ("ERROR: [youtube] a: Unable to download webpage: HTTPSConnectionPool(host='www.youtube.com', port=443): Max retries "
     "exceeded with url: /watch?v=a (Caused by ConnectTimeoutError(<urllib3.connection.HTTPSConnection object at 0x7f>, "
     "'Connection to www.youtube.com timed out. (connect timeout=20.0)'))", "connection"),
    ("ERROR: unable to download video data: ('Unable to connect to proxy', OSError('Tunnel connection failed: 403 Forbidden'))",
     "connection"),
    ("ERROR: \r[download] Got error: HTTPSConnectionPool(host='rr2---sn-hxb54vo-045e.googlevideo.com', port=443): Read timed "
     "out. (read timeout=20.0). Giving up after 10 retries", "timeout"),
    ("ERROR: \r[download] Got error: The read operation timed out. Giving up after 10 retries", "timeout"),
    ("ERROR: \r[download] Got error: 1000 bytes read, 999000 more expected. Giving up after 1 retries", "cut_off"),
    ("ERROR: \r[download] Got error: Downloaded 1000 bytes, expected 2000 bytes. Giving up after 1 retries", "cut_off"),
    ("ERROR: unable to download video data: ('Connection broken: IncompleteRead(1000 bytes read, 999000 more expected)', "
     "IncompleteRead(1000 bytes read, 999000 more expected))", "cut_off"),
    ("ERROR: Did not get any data blocks", "cut_off"),
    # unknown
    ("ERROR: Postprocessing: ffmpeg exited with code 1", "video_error"),
    ("", "video_error"),
]  # fmt: skip

WORDS = [  # as the installed yt-dlp writes them: file, words, what they mean
    ("extractor/youtube/_video.py", "The uploader has not made this video available in your country", "region_blocked"),
    ("extractor/youtube/_video.py", "This content isn't available, try again later", "rate_limited"),
    ("extractor/youtube/_video.py", "has been rate-limited by YouTube for up to an hour", "rate_limited"),
    ("extractor/youtube/_video.py", "YouTube is requiring a captcha challenge before playback", "bot_check"),
    ("extractor/youtube/_video.py", "Your IP is likely being blocked by Youtube", "bot_check"),
    ("extractor/youtube/_video.py", "Failed to extract any player response", "connection"),
    ("extractor/youtube/_video.py", "No supported JavaScript runtime could be found", "no_js_runtime"),
    ("extractor/youtube/_video.py", "n challenge solving failed", "no_js_runtime"),
    ("extractor/youtube/_video.py", "Signature solving failed", "no_js_runtime"),
    ("extractor/youtube/_video.py", "confirm your age", "age_restricted"),
    ("extractor/youtube/_video.py", "This video is age-restricted", "age_restricted"),
    ("extractor/youtube/_video.py", "This video has been removed for violating YouTube", "video_removed"),
    ("extractor/youtube/_video.py", "This video does not exist.", "video_removed"),
    ("extractor/youtube/_video.py", "Private video", "video_private"),
    ("extractor/youtube/_video.py", "Video unavailable", "video_unavailable"),
    ("extractor/youtube/_video.py", "This video is not available.", "video_unavailable"),
    ("extractor/youtube/_base.py", "Login details are needed to download this content", "login_required"),
    ("extractor/youtube/_base.py", "Incomplete data received", "cut_off"),
    ("extractor/youtube/_mistakes.py", "Incomplete YouTube ID", "not_a_video"),
    ("extractor/youtube/_mistakes.py", "Did you forget to quote the URL", "not_a_video"),
    ("extractor/youtube/jsc/_builtin/ejs.py", "No usable challenge solver", "no_js_runtime"),
    ("extractor/common.py", "This video is DRM protected", "drm_protected"),
    ("extractor/common.py", "This video is only available for registered users", "login_required"),
    ("extractor/common.py", "This video is not available from your location due to geo restriction", "region_blocked"),
    ("extractor/unsupported.py", "The requested site is known to use DRM protection.", "drm_protected"),
    ("extractor/generic.py", " is not a valid URL", "not_a_video"),
    ("utils/_utils.py", "Unsupported URL: ", "not_a_video"),
    ("utils/_utils.py", "The channel is not currently live", "not_ready"),
    ("utils/_utils.py", "The download speed is below throttle limit", "timeout"),
    ("utils/_utils.py", "Downloaded {downloaded} bytes, expected {expected} bytes", "cut_off"),
    ("networking/exceptions.py", "{partial} bytes read", "cut_off"),
    ("networking/exceptions.py", "HTTP Error {response.status}", "server_error"),
    ("downloader/http.py", "Did not get any data blocks", "cut_off"),
    ("downloader/fragment.py", "The downloaded file is empty", "cut_off"),
    ("YoutubeDL.py", "content too short", "cut_off"),
    ("YoutubeDL.py", "No suitable extractor", "not_a_video"),
    ("YoutubeDL.py", "No video formats found!", "no_format"),
    ("YoutubeDL.py", "Requested format is not available", "no_format"),
    ("YoutubeDL.py", "only images are available for download", "no_format"),
]  # fmt: skip
ADVICE = [  # what is taken out
    ("utils/_utils.py", "please report this issue on "),
    ("utils/_utils.py", "' (caused by %r)'"),
    ("extractor/common.py", "Use --cookies-from-browser or --cookies for the authentication"),
    ("extractor/youtube/_video.py", "It is recommended to use `-t sleep`"),
    ("YoutubeDL.py", "You might want to use a VPN"),
    ("YoutubeDL.py", "Use --list-formats"),
]


def check(why: Skip | Retry) -> None:
    """What every refusal keeps to."""
    assert isinstance(why, Skip) == (why.reason in SKIPPED)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", why.reason) and why.reason in REASONS
    assert why.detail and len(why.detail.splitlines()) == 1
    assert len(why.detail) <= LONGEST + 100
    why.detail.encode()
    assert why.detail.endswith(f"; next: {NEXT.get(why.reason)}") or why.reason not in NEXT


@pytest.mark.parametrize(("message", "reason"), MESSAGES)
def test_real_messages(message: str, reason: str) -> None:
    why = refusal(message)
    assert why.reason == reason
    check(why)
    told = why.detail.partition("; next: ")[0]
    assert not told.startswith(("ERROR", "[", " "))
    assert not re.search(r"please report|\(caused by|--cookies|--proxy|--list-formats|-t sleep|yt-dlp -U|\x1b", told)


def test_the_table_has_messages_of_every_reason() -> None:
    assert {reason for _, reason in MESSAGES} == REASONS
    later = {*REFUSED, "forbidden", "server_error", "connection"}  # not the video's fault: others will fail too
    assert SKIPPED | later | set(NEXT) <= REASONS
    assert not SKIPPED & later


@pytest.mark.parametrize(("file", "words", "reason"), WORDS)
def test_yt_dlp_still_says_so(file: str, words: str, reason: str) -> None:
    assert words in (SOURCE / file).read_text(encoding="utf-8"), "yt-dlp has reworded it: see what it says now"
    assert refusal(re.sub(r"\{[a-z.]+\}", "500", f"ERROR: [youtube] 2yzMUs3badc: {words}")).reason == reason


@pytest.mark.parametrize(("file", "words"), ADVICE)
def test_yt_dlp_still_advises_so(file: str, words: str) -> None:
    assert words in (SOURCE / file).read_text(encoding="utf-8"), "yt-dlp has reworded it: see what it says now"


@pytest.mark.parametrize("before", ["", "Video unavailable. ", "ERROR: [youtube] 2yzMUs3badc: Video unavailable\n"])
@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        ("This video has been removed by the uploader", "video_removed"),
        ("This video is not available in your country", "region_blocked"),
        ("This video is private", "video_private"),
        ("YouTube is requiring a captcha challenge before playback", "bot_check"),
        ("This content isn’t available, try again later.", "rate_limited"),
    ],
)
def test_a_cause_goes_before_video_unavailable(before: str, cause: str, reason: str) -> None:
    assert refusal(before + cause).reason == reason


def test_what_has_no_format_without_a_runtime_may_have_one_with_it() -> None:
    for message in (NO_FORMAT, "No video formats found!"):
        assert isinstance(refusal(message), Skip)
        without = refusal(message, has_runtime=False)
        assert isinstance(without, Retry) and without.reason == "no_js_runtime"
    gone = refusal("Video unavailable", has_runtime=False)
    assert isinstance(gone, Skip) and "JavaScript runtime" in gone.detail
    assert refusal("Video unavailable").detail == "Video unavailable"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, "video_error"),
        (200, "video_error"),
        (400, "video_error"),
        (401, "forbidden"),
        (402, "rate_limited"),
        (403, "forbidden"),
        (404, "missing"),
        (407, "connection"),
        (410, "missing"),
        (416, "cut_off"),
        (429, "rate_limited"),
        (451, "region_blocked"),
        (500, "server_error"),
        (504, "server_error"),
    ],
)
def test_a_status_tells_where_words_do_not(status: int | None, reason: str) -> None:
    assert refusal("", status=status).reason == reason
    assert refusal("gibberish", status=status).reason == reason
    assert refusal("", status=status).detail.startswith(f"HTTP {status}" if status else "yt-dlp gives no reason")


def test_details_are_short_and_say_what_to_do() -> None:
    bot = refusal("ERROR: [youtube] suAR1PYFNYA: Sign in to confirm you’re not a bot." + LOGIN)
    assert str(bot) == (
        "bot_check: Sign in to confirm you’re not a bot; next: --cookies FILE of a browser that is logged in"
    )
    limited = refusal("ERROR: [youtube] y5W-c0UwcpQ: " + SESSION)
    assert limited.detail.endswith("for up to an hour; next: a lower --videos-per-hour, or wait an hour")
    long = refusal("ERROR: Unsupported URL: https://example.com/" + "a" * 10_000)
    assert len(long.detail) == LONGEST and long.detail.endswith("a…")


@given(
    st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from([m for m, _ in MESSAGES])).map("\n".join),
    st.none() | st.integers(),
    st.booleans(),
)
@example("\ud800\u2028\x85\x00\x1b[31m", None, True)
@example("ERROR: " * 2000 + "[" * 2000, None, True)
@example(" . ; account" * 5000, None, True)
def test_any_text_is_a_refusal(message: str, status: int | None, has_runtime: bool) -> None:
    check(refusal(message, status=status, has_runtime=has_runtime))


@pytest.mark.parametrize("message", ["ERROR: " * 2000 + "[" * 2000, " . ; account" * 5000])
def test_no_text_takes_long(message: str) -> None:
    start = time.process_time()
    refusal(message)
    assert time.process_time() - start < 3


class _Silent:
    def debug(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    (root / "www").mkdir()
    (root / "www/a.mp4").write_bytes(bytes(range(256)) * 2000)
    with Hub(root) as hub:
        yield hub


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("status", {"code": 403}, "forbidden"),
        ("status", {"code": 404}, "missing"),
        ("status", {"code": 503}, "server_error"),
        ("429", {}, "rate_limited"),
        ("html", {}, "not_a_video"),
        ("hang", {"seconds": 2}, "timeout"),
        ("truncate", {"keep": 100_000}, "cut_off"),
        ("reset", {"keep": -1}, "connection"),
        ("reset", {"keep": 100_000}, "connection"),
    ],
)
def test_what_yt_dlp_raises_here(hub: Hub, tmp_path: Path, kind: str, options: dict[str, Any], reason: str) -> None:
    hub.clear()
    hub.fault("a.mp4", kind, times=None, **options)
    why = fetched(f"{hub.url}/a.mp4", tmp_path)
    assert why.reason == reason
    check(why)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.mp4", "http://nosuch.invalid/a.mp4"])
def test_nobody_there(url: str, tmp_path: Path) -> None:
    assert fetched(url, tmp_path).reason == "connection"


def fetched(url: str, folder: Path) -> Skip | Retry:
    settings = {
        "logger": _Silent(),
        "retries": 0,
        "extractor_retries": 0,
        "socket_timeout": 0.5,
        "proxy": "",
        "cachedir": False,
        "outtmpl": str(folder / "%(id)s.%(ext)s"),
    }
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # yt-dlp leaves answers open
        with yt_dlp.YoutubeDL(settings) as downloader, pytest.raises(yt_dlp.utils.DownloadError) as failed:
            downloader.extract_info(url)
        message = str(failed.value)
        del failed, downloader
        gc.collect()
    return refusal(message)
