package labtest

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach/reflector"
)

// reflectorPort is the port of the reflectors on the wan host.
const reflectorPort = 8100

// reflectorArgs describe a reflector.
type reflectorArgs struct {
	Addresses  []netip.AddrPort `json:"addresses"`             // it listens there
	DialFrom   []netip.Addr     `json:"dial_from,omitempty"`   // one for each family
	TrustProxy []netip.Prefix   `json:"trust_proxy,omitempty"` // the proxies in front of it
	Token      string           `json:"token,omitempty"`

	Certificate, Key string // files; without them, there is no TLS
}

// reflectorProgram is a reflector.
var reflectorProgram = lab.Func("reflector", func(p *lab.Proc) {
	var args reflectorArgs
	p.Args(&args)
	h, err := reflector.New(reflector.Config{DialFrom: args.DialFrom, TrustProxy: args.TrustProxy, Token: args.Token})
	if err != nil {
		p.Fatal(err)
	}
	var config *tls.Config
	if args.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(args.Certificate, args.Key)
		if err != nil {
			p.Fatal(err)
		}
		config = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	serve(p, args.Addresses, func(ln net.Listener) error { return h.Serve(context.Background(), ln, config) })
})

// serve listens at these addresses until the test ends.
func serve(p *lab.Proc, addresses []netip.AddrPort, accept func(net.Listener) error) {
	for _, address := range addresses {
		ln, err := net.Listen("tcp", address.String())
		if err != nil {
			p.Fatal(err)
		}
		go func() { p.Fatal(accept(ln)) }()
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
	ssh                            sshServer       // with the command goforward
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
	if needs("stun") {
		startCoturn(t, home.Wan, h.first, h.second, h.first6, h.second6)
	}
	if needs("ssh") {
		h.ssh = startSSHD(t, home.Wan, h.first6, "/bin/bash")
		command, err := builtCommand()
		if err == nil {
			err = os.Symlink(command, filepath.Join(h.ssh.bin, "goforward"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// isHelper reports whether a prober uses a helper.
func isHelper(prober string) bool {
	return prober == "reflector" || prober == "stun" || prober == "ssh"
}

// prober returns the name of a prober for reachProber.
func (h *reachHelpers) prober(c reachCell) string {
	switch c.prober {
	case "reflector":
		return "reflector:" + h.reflector[c.six]
	case "stun":
		if c.six {
			return "stun:" + h.first6.String()
		}
		return "stun:" + h.first.String()
	case "ssh":
		if c.six {
			return "ssh:wanhost6"
		}
		return "ssh:wanhost"
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
