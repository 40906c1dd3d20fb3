package main

import (
	"io"
	"strings"
	"testing"

	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// The example as it stands, on a gateway of the test's own.
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
		t.Fatalf("it says %q", line)
	}
	conn, err := gw.Dial(t.Context(), "tcp", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello from behind the router\n" {
		t.Errorf("read %q, %v", b, err)
	}
	if more := program.Wait(); len(more) != 0 {
		t.Errorf("it says %q", more)
	}
	if left := gw.Table(); len(left) != 0 {
		t.Errorf("the gateway has %v", left)
	}
}
