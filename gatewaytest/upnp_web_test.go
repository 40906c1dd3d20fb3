package gatewaytest

import (
	"net"
	"testing"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// A connection that was accepted, but not yet kept, when its listener was given
// up belongs to nobody: hangUp has come and gone.
func TestUPnPKeepsNoneOfBefore(t *testing.T) {
	t.Parallel()
	g, err := Start(Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{MovePort: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	w, c := g.upnp.webs[0], new(net.TCPConn)
	for name, giveUp := range map[string]func(){
		"moved": func() { g.Restart(RestartOptions{Silent: true}) },
		"down":  g.DownUPnP,
	} {
		if err := g.Up(); err != nil {
			t.Fatal(err)
		}
		before := w.ln
		if !g.upnp.keep(w, before, c) {
			t.Errorf("%s: too early", name)
		}
		giveUp()
		if g.upnp.keep(w, before, c) {
			t.Errorf("%s: kept", name)
		}
	}
}
