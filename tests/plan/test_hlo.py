"""Collectives and loops read from the text of a program."""

import pytest

from mmrl.plan.hlo import collectives

PROGRAM = """HloModule m

%counted (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %limit = s32[] constant(7)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%endless (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-gather(%x), replica_groups=GROUPS, dimensions={0}
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%t), condition=%endless, body=%inner
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w.1 = (s32[], f32[8]) while(%t), condition=%counted, body=%outer
  %w.2 = (s32[], f32[8]) while(%t), condition=%counted, body=%inner
}
"""


def found(groups: str, unknown=None):
    return collectives(PROGRAM.replace("GROUPS", groups), unknown)


def test_loops_are_counted_by_their_condition_where_nothing_else_says():
    through_endless, counted = found("{{0,1}}", unknown=5)
    assert (through_endless.times, counted.times) == (7 * 5, 7)
    assert (through_endless.in_unknown_loop, counted.in_unknown_loop) == (True, False)
    assert found("{{0,1}}")[0].times is None


@pytest.mark.parametrize(
    "groups, devices, span",
    [
        ("{{0,8,16},{1,9,17}}", 3, 17),
        ("[4,2]<=[8]", 2, 2),
        # Devices 0 to 7 as 2 rows of 4, the rows last: 0 and 4 are together.
        ("[4,2]<=[2,4]T(1,0)", 2, 5),
        ("mesh['a'=4,'b'=2] {'a'}", 4, 7),
        ("mesh['a'=4,'b'=2] {'b'}", 2, 2),
        ("mesh['a'=4,'b'=2], device_ids=([8]) {'a','b'}", 8, 8),
        ("unheard", 0, 0),
    ],
)
def test_groups_are_read_in_every_notation(groups, devices, span):
    collective = found(groups)[1]
    assert (collective.devices, collective.span) == (devices, span)
