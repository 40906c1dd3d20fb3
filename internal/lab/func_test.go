package lab_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// calculator adds numbers to its argument until it receives null. It sends each sum.
var calculator = lab.Func("calculator", func(p *lab.Proc) {
	var sum int
	p.Args(&sum)
	for {
		var next *int
		p.Receive(&next)
		if next == nil {
			p.Logf("the last sum on %s was %d", p.Host(), sum)
			return
		}
		sum += *next
		p.Send(sum)
	}
})

func TestFuncMessages(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: function with messages")
	l := lab.New(t)
	proc := l.Host("desk").Start(t, calculator, 1)
	for i, want := range []int{11, 111} {
		proc.Send([]int{10, 100}[i])
		var got int
		proc.Expect(&got)
		if got != want {
			t.Errorf("sum %d, want %d", got, want)
		}
	}
	proc.Send(nil)
	proc.Wait()
}

// hostAddresses sends the addresses that the function sees. It does so from many
// goroutines, and all of them must run in the host.
var hostAddresses = lab.Func("host addresses", func(p *lab.Proc) {
	for range 32 {
		go func() {
			addrs, err := net.InterfaceAddrs() // of the namespace of the calling thread
			if err != nil {
				p.Fatal(err)
			}
			var v4 []string
			for _, a := range addrs {
				if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() && !prefix.Addr().IsLoopback() {
					v4 = append(v4, prefix.String())
				}
			}
			p.Send(strings.Join(v4, " "))
		}()
	}
	p.Receive(nil)
})

func TestFuncRunsInItsHost(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	a, b := l.Host("a"), l.Host("b")
	l.Connect(a.Port("eth0", "10.1.0.1/24"), b.Port("eth0", "10.1.0.2/24", "10.2.0.2/24"))
	for host, want := range map[*lab.Host]string{a: "10.1.0.1/24", b: "10.1.0.2/24 10.2.0.2/24"} {
		proc := host.Start(t, hostAddresses, nil)
		for range 32 {
			var got string
			proc.Expect(&got)
			if got != want {
				t.Errorf("%s has the addresses %q, want %q", host.Name(), got, want)
			}
		}
	}
}

// server listens as the library's own listener does, until it is interrupted.
var server = lab.Func("server", func(p *lab.Proc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ln, err := net.Listen("tcp", ":80")
	if err != nil {
		p.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", ":0")
	if err != nil {
		p.Fatal(err)
	}
	p.Send([]lab.Echo{p.Serve(ln), p.ServePacket(pc)})
	<-ctx.Done()
	p.Send("interrupted")
})

func TestFuncServes(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: function serves, is interrupted, is killed")
	home := lab.Home(t, lab.Router{})
	external := mapTCP(t, home, home.Lan)

	proc := home.Lan.Start(t, server, nil)
	var echo []lab.Echo
	proc.Expect(&echo)
	home.Reaches(t, echo[0], external)
	for _, e := range echo {
		if _, err := home.Router.Reach(e, e.Addr); err != nil {
			t.Error(err)
		}
	}
	proc.Signal(os.Interrupt)
	var message string
	if proc.Expect(&message); message != "interrupted" {
		t.Errorf("received %q", message)
	}
	proc.Wait()

	proc = home.Lan.Start(t, server, nil) // the port is free again
	proc.Expect(&echo)
	home.Reaches(t, echo[0], external)
	proc.Kill()
	if _, err := home.Router.Reach(echo[0], echo[0].Addr); err == nil {
		t.Error("the killed server still replies")
	}
}

func TestCommandErrorHasStderr(t *testing.T) {
	t.Parallel()
	h := lab.New(t).Host("a")
	_, err := h.Run(t.Context(), "sh", "-c", "echo the reason >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "a$ sh") {
		t.Errorf("error %v, want the command and its standard error", err)
	}
}
