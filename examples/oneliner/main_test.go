package main

import (
	"io"
	"strings"
	"testing"

	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestMainGreets runs the unchanged example on a test gateway.
func TestMainGreets(t *testing.T) {
	gw, err := stage.Router(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	defer forward.Close()
	program, err := stage.Run(main)
	if err != nil {
		t.Fatal(err)
	}
	line, err := program.Line()
	if err != nil {
		t.Fatal(err)
	}
	endpoint, found := strings.CutPrefix(line, "reachable at ")
	if !found {
		t.Fatalf("the program printed %q", line)
	}
	conn, err := gw.Dial(t.Context(), "tcp", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello from behind the router\n" {
		t.Errorf("read %q, %v", b, err)
	}
	if lines := program.Wait(); len(lines) != 0 {
		t.Errorf("the program printed more lines: %q", lines)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway still has %v", table)
	}
}
