package reach

import (
	"context"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// phoneTimeout is how long the prober waits for a person.
const phoneTimeout = 2 * time.Minute

// page is what the browser shows.
const page = `<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>goforward</title>
<p style="font:1.5em sans-serif;margin:2em">Your connection arrived. You can close this page.</p>
`

// Phone returns a prober that asks a person to open a URL on a phone that is not on the same
// network. It passes the URL to show and waits for two minutes. The URL has a nonce, so the
// connection is recognized. An arrival from a public address proves LevelInternet. If the phone
// uses the local network, the arrival proves LevelRouter or LevelLAN. If there is no arrival, the
// Verdict is Unknown.
//
// The port must be TCP and must not belong to another program, which would receive the
// connection. Phone does not call show otherwise.
func Phone(show func(url string)) Prober { return phone{show} }

type phone struct{ show func(url string) }

// Name implements Prober.
func (phone) Name() string { return "phone" }

// Probe implements Prober.
func (p phone) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelInternet, To: t.Internal}
	if err := checkExternal(t); err != nil {
		return e, err
	}
	switch {
	case t.Protocol != backends.TCP:
		return e, fmt.Errorf("%w: a browser uses TCP: the phone cannot measure %v", backends.ErrUnsupported, t.Protocol)
	case catcher.Owner() == OwnerOther:
		return e, fmt.Errorf("%w: the program on the port would receive the connection: stop it during the measurement", backends.ErrUnsupported)
	case catcher.Observing() != nil && catcher.Owner() == OwnerNone:
		return e, catcher.Observing()
	}
	nonce := NewNonce()
	arrivals, stop := catcher.Expect(Expectation{
		First:  "GET /" + nonce,
		Answer: fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(page), page),
	})
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, phoneTimeout)
	defer cancel()
	begun := time.Now()
	p.show(fmt.Sprintf("http://%v/%s", t.External, nonce))
	select {
	case a := <-arrivals:
		e.Verdict, e.From, e.At, e.RTT = Reachable, a.From, a.At, a.At.Sub(begun)
		if t.IsFromInternet(a.From.Addr()) {
			e.Detail = fmt.Sprintf("the phone's connection arrived, from %v", a.From)
			return e, nil
		}
		if netbind.HasAddr(a.From.Addr()) {
			return Evidence{Level: LevelInternet}, fmt.Errorf("the URL was opened on this host itself, from %v: open it on a phone", a.From)
		}
		e.Level = LevelLAN
		if from := a.From.Addr(); from == t.External.Addr() || from == t.Gateway { // the router forwarded it, with its own address as the source
			e.Level = LevelRouter
		}
		e.Detail = fmt.Sprintf("the phone's connection arrived from %v, which is not an address of the internet: turn off its Wi-Fi and try again", a.From)
		return e, nil
	case <-ctx.Done():
		return e, fmt.Errorf("the URL was not opened, or its connection did not arrive: %w", context.Cause(ctx))
	}
}
