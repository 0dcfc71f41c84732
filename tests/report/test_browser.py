"""The report in headless Chromium: its rollout viewer shows what rollouts/STEP.jsonl says."""

import json
import shutil
import time

import pytest
from agent_rows import agent_rows, episode_row, long_episode

from mmrl.data import Status
from mmrl.report.html import write_report
from mmrl.report.metrics import MetricsWriter, write_rollouts

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium: apt install chromium chromium-driver"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1400,1000 "
    "--disable-background-networking --disable-component-update --disable-sync"
)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>&lt; \u2028 é 漢 🙂"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser, workdir, rows):
    """Opens the report of a run with these rollouts; returns the rows as the file has them."""
    with MetricsWriter(workdir) as writer:
        writer.write(3, {"reward/mean": 0.5})
    path = write_rollouts(workdir, 3, rows)
    browser.get(write_report(workdir).as_uri())
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def agents(browser, tmp_path_factory):
    rows = opened(browser, tmp_path_factory.mktemp("agents"), agent_rows())
    return browser, rows, browser.current_url


@pytest.fixture
def page(agents):
    """(browser at the freshly loaded report of `agent_rows`, the rows of its file)."""
    browser, rows, url = agents
    browser.get(url)
    return browser, rows


def script(browser, body, *arguments):
    return browser.execute_script(body, *arguments)


def enter(browser, label, value):
    """Types into, or chooses in, the control of this name, as a user's input event says."""
    script(
        browser,
        "const control = document.querySelector(`[aria-label='${arguments[0]}']`);"
        "control.value = arguments[1]; control.dispatchEvent(new Event('input'));",
        label,
        value,
    )


def listed(browser):
    return len(browser.find_elements("css selector", ".list .item"))


def text_of(row):
    return "".join(row["response_tokens"])


def turns(row):
    """Runs of ones in the mask, counted by hand."""
    padded = [0, *row["mask"]]
    return sum(
        1 for before, now in zip(padded, padded[1:], strict=False) if (before, now) == (0, 1)
    )


def show(browser, index):
    """Selects the rollout of this index in the file and opens all of its cards."""
    script(
        browser,
        "select(DATA.rollouts.steps[0].rows[arguments[0]]);"
        "for (const card of document.querySelectorAll('.segment')) card.open = true;",
        index,
    )
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")


def test_opens_without_a_console_message_and_shows_all_rollouts(page):
    browser, rows = page
    assert browser.get_log("browser") == []
    assert listed(browser) == len(rows)


@pytest.mark.parametrize(
    ("entries", "keep"),
    [
        ({"lowest reward": "0.25"}, lambda row: row["reward"] >= 0.25),
        (
            {"lowest reward": "-0.5", "highest reward": "0"},
            lambda row: -0.5 <= row["reward"] <= 0,
        ),
        ({"fewest turns": "2"}, lambda row: turns(row) >= 2),
        ({"most turns": "4", "fewest turns": "4"}, lambda row: turns(row) == 4),
        ({"search text": "NUMBER 7 IS 49"}, lambda row: " number 7 is 49" in text_of(row)),
        ({"search text": "integers from 2"}, lambda row: row["group"] == 2),
        (
            {"status": "turn_limit", "lowest reward": "0.05"},
            lambda row: row["status"] == "turn_limit" and row["reward"] >= 0.05,
        ),
    ],
)  # fmt: skip
def test_filter_leaves_what_the_file_says(page, entries, keep):
    browser, rows = page
    for label, value in entries.items():
        enter(browser, label, value)
    expected = sum(map(keep, rows))
    assert 0 < expected < len(rows)
    assert listed(browser) == expected


def test_every_status_can_be_chosen_and_the_summary_counts_them(page):
    browser, rows = page
    counts = {status.value: 0 for status in Status}
    for row in rows:
        counts[row["status"]] += 1
    assert all(counts.values())
    for status, count in counts.items():
        enter(browser, "status", status)
        assert (status, listed(browser)) == (status, count)
    buttons = browser.find_elements("css selector", ".summary button")
    assert {button.text for button in buttons} == {f"{s} {n}" for s, n in counts.items()}
    enter(browser, "status", "")
    for expected in (counts["turn_limit"], len(rows)):  # one click filters, the next one ends it
        browser.find_element("css selector", ".summary [data-status=turn_limit]").click()
        assert listed(browser) == expected


def test_turns_masks_and_text_are_those_of_the_row(page):
    browser, rows = page
    for index, row in enumerate(rows):
        show(browser, index)
        shown = script(
            browser,
            "const read = (token) => [token.textContent, token.classList.contains('masked')];"
            "return [...document.querySelectorAll('.segment:not(.prompt)')].map((card) => "
            "[card.classList.contains('drawn'), [...card.querySelectorAll('.token')].map(read)]);",
        )
        tokens = [token for _, some in shown for token in some]
        assert [text.replace("↵", "") for text, _ in tokens] == row["response_tokens"]
        assert [int(not masked) for _, masked in tokens] == row["mask"]
        assert sum(drawn for drawn, _ in shown) == turns(row)
        assert all(masked != drawn for drawn, some in shown for _, masked in some)


def test_calls_of_every_family_are_shown_and_unreadable_ones_named(page):
    browser, rows = page
    families = [i for i, row in enumerate(rows) if turns(row) == 4]
    assert len(families) >= 4
    for index in families:
        show(browser, index)
        names = script(
            browser,
            "return [...document.querySelectorAll('.segment.drawn')].map((card) => "
            "[...card.querySelectorAll('.request > b')].map((b) => b.textContent));",
        )
        assert names == [["python"], ["unreadable call"], ["python"], []]
        thinking = browser.find_element("css selector", ".part.thinking").text
        assert "The squares are 0, 1, 4" in thinking
        titles = [e.text for e in browser.find_elements("css selector", ".returned summary b")]
        assert titles == ["Tool result"] * 3


def test_hostile_text_stays_text_wherever_it_stands(browser, tmp_path):
    call = json.dumps({"name": HOSTILE, "arguments": {"<b>": "<i>"}})
    calls = f"<tool_call>{call}</tool_call>"
    message = {"role": HOSTILE, "content": HOSTILE, "name": HOSTILE}
    tool = {"function": {"name": HOSTILE, "description": HOSTILE, "parameters": {HOSTILE: {}}}}
    row = episode_row([(HOSTILE + calls, True), (HOSTILE, False), ("<tool_call>" + HOSTILE, True)])
    row |= {name: HOSTILE for name in ("label", "status", "mode", "error")}
    row |= {"components": {HOSTILE: 1.0}, "prompt": [message], "tools": [tool]}
    opened(browser, tmp_path, [row, row | {"prompt": HOSTILE, "tools": None}])
    for index in (0, 1):
        show(browser, index)
        read = "return document.querySelector(arguments[0]).textContent"
        assert HOSTILE in script(browser, read, ".prompt pre")
        assert HOSTILE in script(browser, read, ".segment.drawn")
        injected = "img, iframe, pre b, dt *, dd *, .error *"
        assert browser.find_elements("css selector", injected) == []
        assert len(browser.find_elements("css selector", "script")) == 2
    assert browser.get_log("browser") == []  # an alert would have made each of these calls fail


def test_arrow_keys_move_the_selection_and_keep_the_focus(page):
    from selenium.webdriver.common.keys import Keys

    browser, _ = page
    position = (
        "const items = [...document.querySelectorAll('.item')];"
        "const selected = items.findIndex((item) => item.ariaSelected === 'true');"
        "return [selected, items.indexOf(document.activeElement)];"
    )
    browser.find_elements("css selector", ".item")[1].click()
    for key, expected in [(Keys.ARROW_DOWN, 2), (Keys.ARROW_DOWN, 3), (Keys.ARROW_UP, 2)]:
        browser.switch_to.active_element.send_keys(key)
        assert script(browser, position) == [expected, expected]


def test_colour_follows_the_switch_and_tokens_that_came_back_have_none(page):
    browser, rows = page
    show(browser, 0)
    backgrounds = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".map((token) => getComputedStyle(token).backgroundColor);"
    )
    drawn, transparent = ".token:not(.masked)", "rgba(0, 0, 0, 0)"
    by_logprob = script(browser, backgrounds, drawn)
    assert len(set(by_logprob)) > 20
    enter(browser, "colour tokens by", "advantage")
    by_advantage = script(browser, backgrounds, drawn)
    assert len(set(by_advantage)) == 1
    enter(browser, "colour tokens by", "advantage × (1 − p)")
    assert len(set(script(browser, backgrounds, drawn))) > 20
    assert set(script(browser, backgrounds, ".token.masked")) == {transparent}
    enter(browser, "colour tokens by", "advantage")
    signs = {}
    for index, row in enumerate(rows):
        if row["status"] != "failed" and row["advantage"]:
            show(browser, index)
            green = script(
                browser,
                "const style = getComputedStyle(document.querySelector('.token'));"
                "return style.getPropertyValue('--tint') === style.getPropertyValue('--good');",
            )
            signs.setdefault(green, set()).add(row["advantage"] > 0)
    assert signs == {True: {True}, False: {False}}


def test_tooltip_tells_of_a_token_what_the_file_says(page):
    from selenium.webdriver import ActionChains

    browser, rows = page
    show(browser, 0)
    row = rows[0]
    drawn, back = row["mask"].index(1) + 4, row["mask"].index(0)
    for position in (drawn, back):
        token = script(
            browser,
            "const tokens = document.querySelectorAll('.segment:not(.prompt) .token');"
            "const token = tokens[arguments[0]];"
            "token.scrollIntoView({ block: 'center' }); return token;",
            position,
        )
        ActionChains(browser).move_to_element(token).perform()
        tip = browser.find_element("id", "tooltip").text
        assert json.dumps(row["response_tokens"][position]) in tip
        assert f"token {position + 1} of {len(row['mask'])}" in tip
        assert "turn 1" in tip
        shown = "log-prob" in tip and "p = " in tip and "advantage" in tip
        assert (shown, "not drawn" in tip) == (
            (True, False) if position == drawn else (False, True)
        )


def test_fifty_turns_of_eight_thousand_tokens_open_quickly(browser, tmp_path):
    rows = [episode_row([("short", True)]), long_episode(turns=50, tokens=8192)]
    opened(browser, tmp_path, rows)
    start = time.perf_counter()
    script(browser, "select(DATA.rollouts.steps[0].rows[1]); return document.body.offsetHeight;")
    assert time.perf_counter() - start < 2
    assert len(browser.find_elements("css selector", ".segment.drawn")) == 50
    made = len(browser.find_elements("css selector", ".token"))
    assert 0 < made < 3000 < len(rows[1]["mask"])
    closed = browser.find_elements("css selector", ".segment.drawn:not([open])")[-1]
    assert closed.find_elements("css selector", ".token") == []
    closed.find_element("css selector", "summary").click()
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    assert len(closed.find_elements("css selector", ".token")) > 10
