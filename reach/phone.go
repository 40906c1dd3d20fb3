package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
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
// If another program has the port, that program receives the connection, so there is no nonce. The
// Verdict is then Unknown, but the error names the source of the next connection from the
// internet, and the person can compare it with the address of the phone. For a UDP port, Phone does
// not call show.
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
	case p.show == nil:
		return e, fmt.Errorf("%w: Phone needs a function that shows the URL", backends.ErrInvalid)
	case t.Protocol != backends.TCP:
		return e, fmt.Errorf("%w: a browser uses TCP: the phone cannot measure %v", backends.ErrUnsupported, t.Protocol)
	case catcher.Owner() == OwnerOther && catcher.Observing() != nil, catcher.Owner() == OwnerNone:
		return e, cmp.Or(catcher.Observing(), errNotObserved)
	case catcher.Owner() == OwnerOther:
		return e, p.watch(ctx, t, catcher)
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

var errNotObserved = errors.New("the port cannot be observed")

// watch shows the URL of another program, and reports the next connection from the internet. It
// always fails, because that may be another visitor.
func (p phone) watch(ctx context.Context, t Target, catcher Catcher) error {
	arrivals, stop := catcher.Expect(Expectation{Source: func(netip.AddrPort) bool { return true }, From: t.IsFromInternet})
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, phoneTimeout)
	defer cancel()
	p.show(fmt.Sprintf("http://%v/", t.External))
	select {
	case a := <-arrivals:
		return fmt.Errorf("a connection from %v arrived at the program on the port: if that is the address of the phone, the port is reachable; for a proof, stop the program during the measurement", a.From.Addr())
	case <-ctx.Done():
		return fmt.Errorf("no connection from the internet arrived at the program on the port: %w", context.Cause(ctx))
	}
}
