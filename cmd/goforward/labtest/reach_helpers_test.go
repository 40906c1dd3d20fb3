package labtest

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/internal/lab"
)

// reflectorPort is the port of the reflectors on the wan host.
const reflectorPort = 8100

// reflectorArgs describe a reflector.
type reflectorArgs struct {
	Addresses  []netip.AddrPort `json:"addresses"`             // it listens there
	DialFrom   []netip.Addr     `json:"dial_from,omitempty"`   // one for each family
	TrustProxy []netip.Prefix   `json:"trust_proxy,omitempty"` // the proxies in front of it
	Token      string           `json:"token,omitempty"`
}

// reflectorProgram is a reflector.
var reflectorProgram = lab.Func("reflector", func(p *lab.Proc) {
	var args reflectorArgs
	p.Args(&args)
	serveHTTP(p, args.Addresses, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request dialback.Request
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		client := netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap()
		line := dialback.Line{State: dialback.StateDialing, Protocol: request.Probes[0].Protocol, Port: request.Probes[0].Port, Address: client}
		call := dialback.Call{Protocol: line.Protocol, To: netip.AddrPortFrom(client, line.Port), Nonce: request.Probes[0].Nonce, Want: request.Probes[0].Want}
		for _, from := range args.DialFrom {
			if from.Is4() == client.Is4() {
				call.From = from
			}
		}
		out := json.NewEncoder(w)
		got, _, _ := call.Do(ctx, func(from netip.AddrPort) {
			line.From = from
			_ = out.Encode(line)
			_ = http.NewResponseController(w).Flush()
		})
		if line.State, line.Result = dialback.StateDone, got; got != dialback.Echoed {
			<-ctx.Done()
			line.Result = dialback.Silent
		}
		_ = out.Encode(line)
	}))
})

// serveHTTP serves HTTP at these addresses until the test ends.
func serveHTTP(p *lab.Proc, addresses []netip.AddrPort, handler http.Handler) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: maxWait}
	for _, address := range addresses {
		ln, err := net.Listen("tcp", address.String())
		if err != nil {
			p.Fatal(err)
		}
		go func() { p.Fatal(server.Serve(ln)) }()
	}
	p.Send("serving")
	p.Receive(nil)
}

// startReflector starts a reflector in the host. It returns its URL over IPv6 and over IPv4.
func startReflector(t *testing.T, host *lab.Host, args reflectorArgs) map[bool]string {
	t.Helper()
	host.Start(t, reflectorProgram, args).Expect(nil)
	return urls(args.Addresses, "")
}

// urls returns the URLs of the servers at these addresses, over IPv6 or not.
func urls(addresses []netip.AddrPort, path string) map[bool]string {
	all := map[bool]string{}
	for _, a := range addresses {
		all[a.Addr().Is6()] = "http://" + a.String() + path
	}
	return all
}

// reachHelpers are the helpers on the wan host.
type reachHelpers struct {
	first, second, first6, second6 netip.Addr      // the addresses of the wan host
	reflector                      map[bool]string // the URL over IPv6 or not
}

// startHelpers starts the helpers that the cells need.
func startHelpers(t *testing.T, home *lab.HomeNet, needs func(prober string) bool) *reachHelpers {
	t.Helper()
	h := &reachHelpers{}
	h.first, h.second, h.first6, h.second6 = wanAddrs(t, home)
	if needs("reflector") {
		h.reflector = startReflector(t, home.Wan, reflectorArgs{Addresses: []netip.AddrPort{
			netip.AddrPortFrom(h.first, reflectorPort), netip.AddrPortFrom(h.first6, reflectorPort),
		}})
	}
	return h
}

// isHelper reports whether a prober uses a helper.
func isHelper(prober string) bool { return prober == "reflector" }

// prober returns the name of a prober for reachProber.
func (h *reachHelpers) prober(c reachCell) string {
	switch c.prober {
	case "reflector":
		return "reflector:" + h.reflector[c.six]
	case "path":
		return "path:eth1"
	case "listening", "visit":
		return "nothing"
	}
	return c.prober
}

// method returns Evidence.Method of a prober.
func (h *reachHelpers) method(c reachCell) string {
	switch c.prober {
	case "reflector":
		return h.reflector[c.six]
	case "listening", "visit":
		return c.prober
	}
	return h.prober(c)
}
