from batch.stages.base import Listener, Stage
from tests.batch.doubles import PainterStage
from tests.batch.stages.test_generate import Onlooker


def test_a_stage_and_a_listener_are_what_they_are_by_what_they_do() -> None:
    stage: type[Stage] = PainterStage
    listener: type[Listener] = Onlooker
    assert {"setup", "__call__"} <= set(dir(stage))
    assert {"at", "leaving"} <= set(dir(listener))
