package cli

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// hookMain is this test binary as a command of --exec:
//
//	hook tell ARG…     prints what it is told
//	hook fail          to both outputs, and with code 7
//	hook leave ADDR    leaves a hang behind, and succeeds
//	hook hang ADDR     until it is killed; the connection to ADDR breaks then
//	hook group ADDR    starts a hang, and waits for that
func hookMain(args []string) {
	switch args[0] {
	case "tell":
		for _, pair := range os.Environ() {
			if strings.HasPrefix(pair, "GOFORWARD_") && !strings.HasPrefix(pair, "GOFORWARD_LAB") { // which is for our tests
				fmt.Println(pair)
			}
		}
		fmt.Printf("args %q", args[1:])
	case "fail":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err\x1b[2J")
		os.Exit(7)
	case "leave", "group":
		cmd := exec.Command(os.Args[0], "hook", "hang", args[1])
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err := cmd.Start()
		if err == nil && args[0] == "group" {
			err = cmd.Wait()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "hang":
		conn, err := net.Dial("tcp", args[1])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_, _ = io.Copy(io.Discard, conn) // until it is let go
	}
	os.Exit(0)
}

// hook is such a command line.
func hook(t *testing.T, args ...string) []string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{path, "hook"}, args...)
}

// hangs is where a hook hangs.
type hangs struct {
	addr string
	conn net.Conn
	came chan struct{} // closed when it has come
	gone chan struct{} // closed when it has gone
}

func startHangs(t *testing.T) *hangs {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hangs{addr: ln.Addr().String(), came: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		defer close(h.gone)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		h.conn = conn
		close(h.came)
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		h.drop()
		<-h.gone
	})
	return h
}

// drop lets it go, if it has come.
func (h *hangs) drop() {
	select {
	case <-h.came:
		_ = h.conn.Close()
	default:
	}
}
