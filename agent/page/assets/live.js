// What goes on, as the agent sends it; nothing is asked for while nobody looks.

const AGAIN_MS = 5000;
const SILENT_MS = 6000;

/** Calls `take` with each state, and `say` with "waiting", "live", "lost" or "hidden". */
export function follow(take, say) {
  let source = null, again = 0, silence = 0;

  function end() {
    source?.close();
    source = null;
    clearTimeout(again);
    clearTimeout(silence);
  }

  function begin() {
    end();
    source = new EventSource("page/events");
    source.addEventListener("state", (event) => {
      clearTimeout(silence);
      silence = setTimeout(() => say("lost"), SILENT_MS);
      say("live");
      take(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      say("lost");
      if (source?.readyState === EventSource.CLOSED) again = setTimeout(begin, AGAIN_MS);
    });
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      end();
      say("hidden");
    } else begin();
  });
  window.addEventListener("pagehide", end);
  if (!document.hidden) begin();
}
