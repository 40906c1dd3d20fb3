package upnp

import (
	"net"
	"regexp"
	"strconv"
	"testing"
	"time"
)

var requestedIndex = regexp.MustCompile(`<NewPortMappingIndex>(\d+)<`)

// TestManyEntries checks that a large table is listed completely, and that listing
// an endless one stops at a limit.
func TestManyEntries(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		size, want, requests int
		port                 func(i int) int
	}{
		"1000 entries":             {1000, 1000, 1001, func(i int) int { return i + 1 }},
		"repeated entries":         {300, 150, 301, func(i int) int { return i/2 + 1 }},
		"same entry at each index": {1 << 30, 1, 1 + maxRepeats, func(int) int { return 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serveRaw(t, func(conn net.Conn, _ int, request string) {
				index := requestedIndex.FindStringSubmatch(request)
				if index == nil {
					return // the client connected again because the first attempt was slow
				}
				i, _ := strconv.Atoi(index[1])
				a := status(500, fault("713"))
				if i < tt.size {
					a = ok(soapResponse("GetGenericPortMappingEntry", elements(
						"NewRemoteHost", "", "NewExternalPort", strconv.Itoa(tt.port(i)), "NewProtocol", "TCP",
						"NewInternalPort", "80", "NewInternalClient", "192.168.1.9", "NewEnabled", "1",
						"NewPortMappingDescription", "x", "NewLeaseDuration", "0")))
				}
				_, _ = conn.Write([]byte(a))
			})
			n, reader := 0, s.reader(t, ip1)
			reader.slow = time.Hour // one row at a time
			for e, err := range reader.entries(t.Context()) {
				if n++; err != nil || int(e.ExternalPort) != n {
					t.Fatalf("row %d: %+v, %v", n, e, err)
				}
			}
			requests := 0
			for _, r := range s.received() {
				if requestedIndex.MatchString(r) { // a second connection after a slow first one may carry no request
					requests++
				}
			}
			if n != tt.want || requests != tt.requests {
				t.Errorf("listed %d rows with %d requests, want %d with %d", n, requests, tt.want, tt.requests)
			}
		})
	}
}

// fault returns the body of a UPnP fault.
func fault(code string) string {
	return `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>` +
		`<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>` + code +
		`</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>`
}
