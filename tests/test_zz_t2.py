import pytest, asyncio
from tests.web.stage import *
from tests.kit.upstream import *
pytestmark = pytest.mark.asyncio
@pytest.mark.parametrize("interval",["0s","50ms"])
@pytest.mark.parametrize("pause",[0,0.02,0.2])
async def test_x(tmp_path, interval, pause):
    async with staged(tmp_path, [{"path":"/openai","api":"openai"},{"path":"/chat"}], stream={"batch":{"interval":interval}}) as stage:
        for route in ("/openai","/chat"):
            q = stage.plays([sse_head(), *[openai_delta("four")]*60, Pause(pause), Reset()])
            m = await whole(await stage.ask(route,q))
            print(interval, pause, route, sum(x.data.count("four") for x in m), m[-1].data[:100])
            await asyncio.sleep(.1)
        print([l for l in stage.gateway.log_lines() if l["event"] in ("stream_failed",)])
