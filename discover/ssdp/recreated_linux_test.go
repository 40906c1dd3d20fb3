package ssdp

import (
	"context"
	"testing"
	"time"
)

// A Listener on an interface hears notices again after that interface was deleted
// and created again under the same name.
func TestNamespaceListenRecreated(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := twoHosts(t)
	// The cable to the other host becomes a port of a switch, so that the interface
	// can go without it.
	ip(t, `
		link set lan down
		link set lan name cable
		addr flush dev cable
		link add switch type bridge stp_state 0 mcast_snooping 0
		link set cable master switch
		link set cable up
		link set switch up`)
	create := func() {
		ip(t, `
			link add lan type veth peer name port
			link set port master switch
			link set port up
			link set lan up
			addr add 10.1.0.5/24 dev lan`)
	}
	create()
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan NotificationKind, 1024), make(chan error, 1)
	go func() {
		ended <- Listener{Addr: Multicast, Interface: "lan"}.Listen(ctx, func(n Notification) { heard <- n.Kind })
	}()
	hears := func(kind NotificationKind, notice, when string) {
		t.Helper()
		const longest = 10 * time.Second
		over := time.After(longest)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case got := <-heard:
				if got == kind {
					return
				}
			case <-tick.C:
				if _, err := h.sender4.WriteToUDPAddrPort([]byte(crlf(notice)), Multicast); err != nil {
					t.Fatal(err)
				}
			case err := <-ended:
				t.Fatalf("%s: Listen returned: %v", when, err)
			case <-over:
				t.Fatalf("%s: no notice was heard in %v, and one was sent every 100 ms", when, longest)
			}
		}
	}
	hears(Alive, alive, "at the beginning")
	ip(t, "link del lan")
	create()
	hears(ByeBye, byebye, "after the interface was created again")
	cancel()
	<-ended
}
