package cli

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// demoServer answers every request with a greeting.
type demoServer struct {
	ln   net.Listener
	done chan struct{}
}

func startDemoServer(ctx context.Context) (*demoServer, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &demoServer{ln: ln, done: make(chan struct{})}
	go s.serve()
	return s, nil
}

func (s *demoServer) addr() netip.AddrPort {
	return netip.MustParseAddrPort(s.ln.Addr().String())
}

// serve takes one visitor after another.
func (s *demoServer) serve() {
	defer close(s.done)
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(demoPatience))
		if r := bufio.NewReader(conn); readRequest(r) == nil {
			_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n"+demoGreeting+"\n")
		}
		_ = conn.Close()
	}
}

// readRequest reads to the empty line.
func readRequest(r *bufio.Reader) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			return err
		}
	}
}

func (s *demoServer) close() {
	_ = s.ln.Close()
	<-s.done
}
