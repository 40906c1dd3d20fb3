package main

import (
	"testing"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestRestart is the test in the README.
func TestRestart(t *testing.T) {
	gw := gatewaytest.New(t, gatewaytest.Config{}) // closed when the test ends
	f, _ := forward.New(gw.Config())               // this Config is valid
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{}) // deletes the mapping, and announces the restart
	for changed := m.Changed(); len(gw.Table()) == 0; changed = m.Changed() {
		<-changed
	}
}
