package cli

import (
	"regexp"
	"testing"
)

const wantDemo = `A simulated router within this process, with a simulated internet on the other side.

   inside   127.0.0.1:PORT a small web server
   router   127.0.0.1:PORT supports NAT-PMP, PCP and UPnP
   outside  45.45.45.1        the router's address on the internet

1. A visitor connects from the internet
   visitor  dials 45.45.45.1:8080: connection refused

2. Ask the router to forward port 8080
   shell    goforward map 8080:PORT --hold
   Go       m, err := forward.Enable(forward.TCP(PORT), forward.External(8080))
   router   45.45.45.1:8080 → 127.0.0.1:PORT, for 2 hours; renewed before it ends
   visitor  GET http://45.45.45.1:8080/ → "hello from behind the router"

3. The router restarts and loses the mapping
   lost     the gateway's clock went back
   restored 45.45.45.1:8080 → 127.0.0.1:PORT, after TIME
   visitor  GET http://45.45.45.1:8080/ → "hello from behind the router"

4. Delete the mapping
   shell    Ctrl-C, or goforward unmap PORT
   Go       forward.Disable()
   visitor  dials 45.45.45.1:8080: connection refused

Nothing is left. With your own router: goforward gateways, then goforward map 8080.
`

func TestDemo(t *testing.T) {
	t.Parallel()
	got := run(t, nil, "demo")
	text := regexp.MustCompile(`after [0-9.]+[mµ]?s`).ReplaceAllString(got.stdout, "after TIME")
	text = regexp.MustCompile(`(127\.0\.0\.1:|8080:|TCP\(|unmap )[0-9]+( {2,})?`).ReplaceAllStringFunc(text, func(s string) string {
		s = regexp.MustCompile(`[0-9]+ *$`).ReplaceAllString(s, "PORT")
		return s
	})
	text = regexp.MustCompile(`PORT(a|supports)`).ReplaceAllString(text, "PORT $1")
	if text != wantDemo || got.code != exitDone || got.stderr != "" {
		t.Errorf("exit code %d\n%s%s", got.code, text, got.stderr)
	}
}
