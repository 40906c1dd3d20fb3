package labtest

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/internal/lab"
)

// natpmpProgram uses only the NAT-PMP client. After each step it sends the result and
// waits until the test has inspected the router.
var natpmpProgram = lab.Func("natpmp client", func(p *lab.Proc) {
	var gateway netip.Addr
	p.Args(&gateway)
	c, err := natpmp.NewClient(natpmp.Config{Gateway: netip.AddrPortFrom(gateway, 0), Transmissions: 3})
	if err != nil {
		p.Fatal(err)
	}
	ctx := context.Background()
	step := func(v any, err error) {
		if err != nil {
			p.Fatal(err)
		}
		p.Send(v)
		p.Receive(nil)
	}
	mapPort := func(protocol backends.Protocol, internal, external uint16) {
		step(c.Map(ctx, natpmp.MapRequest{
			Protocol: protocol, InternalPort: internal, ExternalPort: external, Lifetime: time.Minute,
		}))
	}
	step(c.ExternalAddr(ctx))
	mapPort(backends.TCP, 80, 8080)
	mapPort(backends.UDP, 80, 8080)
	step("unmapped", c.Unmap(ctx, backends.UDP, 80))
	mapPort(backends.UDP, 80, 8080)
	mapPort(backends.TCP, 81, 8081)
	step("all unmapped", c.UnmapAll(ctx, backends.TCP))
	step("all unmapped", c.UnmapAll(ctx, backends.UDP))
	step(c.Transact(ctx, []byte{0, 99}))
	step(c.Transact(ctx, append([]byte{9, 1}, make([]byte, 58)...)))

	_, err = c.Map(ctx, natpmp.MapRequest{Protocol: backends.TCP})
	if !errors.Is(err, backends.ErrInvalid) {
		p.Fatalf("Map of port 0: %v", err)
	}
	if err := c.Close(); err != nil {
		p.Fatal(err)
	}
})

// TestNATPMP checks the NAT-PMP client without a Forwarder.
func TestNATPMP(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "natpmp: the client alone")
	home := lab.Home(t, lab.Router{})
	occupyPort(t, home, "tcp", 9000)
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":80"), home.Lan.Echo(t, "udp", ":80")
	p := home.Lan.Start(t, natpmpProgram, home.Gateway)
	next := func() { p.Send("go on") }

	var addr natpmp.ExternalAddrResponse
	p.Expect(&addr)
	if addr.Addr != home.External || addr.Result != natpmp.Success || addr.Epoch == 0 {
		t.Errorf("%+v", addr)
	}
	next()

	wantMapped := func(protocol backends.Protocol, internal, external uint16) {
		t.Helper()
		var r natpmp.MapResponse
		p.Expect(&r)
		if r.Protocol != protocol || r.InternalPort != internal || r.ExternalPort != external ||
			r.Lifetime != time.Minute || r.Result != natpmp.Success {
			t.Errorf("%+v", r)
		}
	}
	wantMapped(backends.TCP, 80, 8080)
	home.Reaches(t, byTCP, externalAddr(home, 8080))
	wantRules(t, home, 2)
	next()
	wantMapped(backends.UDP, 80, 8080)
	home.Reaches(t, byUDP, externalAddr(home, 8080))
	wantRules(t, home, 3)
	next()
	p.Expect(nil) // Unmap
	home.DoesNotReach(t, byUDP, externalAddr(home, 8080))
	home.Reaches(t, byTCP, externalAddr(home, 8080))
	wantRules(t, home, 2)
	next()
	wantMapped(backends.UDP, 80, 8080)
	next()
	wantMapped(backends.TCP, 81, 8081)
	home.Reaches(t, byTCP, externalAddr(home, 8080))
	wantRules(t, home, 4)
	next()
	p.Expect(nil) // UnmapAll of TCP
	home.DoesNotReach(t, byTCP, externalAddr(home, 8080))
	next()
	p.Expect(nil) // UnmapAll of UDP
	home.DoesNotReach(t, byUDP, externalAddr(home, 8080))
	wantRules(t, home, 1) // the rule of the neighbour
	next()

	var response []byte
	p.Expect(&response)
	t.Logf("unknown opcode: %x", response)
	if len(response) != 8 || !bytes.HasPrefix(response, []byte{0, 128 + 99, 0, byte(natpmp.UnsupportedOpcode)}) {
		t.Errorf("unknown opcode: %x", response)
	}
	next()
	p.Expect(&response)
	t.Logf("version 9: %x", response)
	next()
	p.Wait()
}
