package cli

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/natforward/goforward/gatewaytest"
)

// Nothing is left in the process either.
func TestHoldEnds(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	ctx, interrupt := context.WithCancel(t.Context())
	r, w := io.Pipe()
	var stderr bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		defer func() { _ = w.Close() }()
		ended <- Run(ctx, []string{"map", "8080", "--hold", "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String()}, w, &stderr)
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || line != "45.45.45.1:8080\n" {
		t.Errorf("%q, %v", line, err)
	}
	interrupt()
	if code := <-ended; code != exitDone || !strings.Contains(stderr.String(), " unmapped tcp 45.45.45.1:8080") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	if n := len(gw.Table()); n != 0 {
		t.Errorf("%d mappings are left", n)
	}
}
