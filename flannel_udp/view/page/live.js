// Server-sent events: a look at the lab a second; the browser comes back by itself after an outage.

export function listen({ look, trouble, end }) {
  const source = new EventSource("live");
  source.addEventListener("look", (event) => look(JSON.parse(event.data)));
  source.addEventListener("trouble", (event) => trouble(JSON.parse(event.data)));
  source.addEventListener("end", (event) => {
    source.close();
    end(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) {
      end("the page's server refuses: open the address that flannel-udp lab view has printed");
    } else {
      trouble("the page's server does not answer: is flannel-udp lab view still running?");
    }
  });
}
