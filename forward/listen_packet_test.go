package forward_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

func TestListenPacketEcho(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	pc, err := f.ListenPacket(t.Context(), "udp4", ":0", forward.External(9000))
	if err != nil {
		t.Fatal(err)
	}
	if err := pc.Mapping().Wait(waiting(t)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				ended <- err
				return
			}
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
	out, err := gw.Dial(t.Context(), "udp", pc.External().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_ = out.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(out, "hello")
	b := make([]byte, 100)
	if n, err := out.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if pc.External().Port() != 9000 || len(gw.Table()) != 1 || gw.Table()[0].Protocol != backends.UDP {
		t.Errorf("External %v; the gateway has %v", pc.External(), gw.Table())
	}
	for range 2 {
		if err := pc.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) || len(gw.Table()) != 0 {
		t.Errorf("ReadFrom after Close: %v; the gateway has %v", err, gw.Table())
	}
}
