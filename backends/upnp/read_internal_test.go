package upnp

import (
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TestReadAhead checks that rows of a slow device are requested several at a time, and one at a
// time again after the first failure. The device replies to two requests together, so the
// test fails if they are sent one after another.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	const size = 200
	for name, failing := range map[string]string{"works": "", "busy": status(500, fault("501")), "no HTTP": "busy", "reset": "-", "mixed": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			asked, inFlight, most := map[int]bool{}, 0, 0
			partner := make(chan struct{})
			s := serveRaw(t, func(conn net.Conn, _ int, request string) {
				index := requestedIndex.FindStringSubmatch(request)
				if index == nil {
					return // the client connected again because the first attempt was slow
				}
				i, _ := strconv.Atoi(index[1])
				mu.Lock()
				again := asked[i]
				asked[i] = true
				inFlight++
				most = max(most, inFlight)
				if i < aheadAfter && inFlight > 1 {
					t.Errorf("index %d is requested together with others", i)
				}
				mu.Unlock()
				if i >= aheadAfter && !again && (failing == "" || i < aheadAfter+2) {
					select {
					case partner <- struct{}{}:
					case <-partner:
					case <-time.After(10 * time.Second):
						t.Errorf("index %d is requested alone", i)
					}
				}
				mu.Lock()
				inFlight--
				mu.Unlock()
				a := status(500, fault("713"))
				switch {
				case i == aheadAfter+1 && !again && failing == "-":
					return
				case i == aheadAfter+1 && !again && failing == "0":
					i = 0
				case i == aheadAfter+1 && !again && failing != "":
					a, i = failing, size
				}
				if i < size {
					a = ok(soapResponse("GetGenericPortMappingEntry", elements(
						"NewRemoteHost", "", "NewExternalPort", strconv.Itoa(i+1), "NewProtocol", "TCP", "NewInternalPort", "80",
						"NewInternalClient", "192.168.1.9", "NewEnabled", "1", "NewPortMappingDescription", "x", "NewLeaseDuration", "0")))
				}
				_, _ = conn.Write([]byte(a))
			})
			reader, n := s.reader(t, ip1), 0
			reader.slow, reader.isGain = 0, func(time.Duration, time.Duration) bool { return true }
			for e, err := range reader.entries(t.Context()) {
				if n++; err != nil || int(e.ExternalPort) != n {
					t.Fatalf("row %d: %+v, %v", n, e, err)
				}
			}
			want := 2
			if failing == "" {
				want = maxAtOnce
			}
			if n != size || most > want || most < 2 {
				t.Errorf("listed %d rows, at most %d requests at a time; want %d and %d", n, most, size, want)
			}
		})
	}
}
