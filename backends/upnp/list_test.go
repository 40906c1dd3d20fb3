package upnp

import (
	"net"
	"regexp"
	"strconv"
	"testing"
)

var requestedIndex = regexp.MustCompile(`<NewPortMappingIndex>(\d+)<`)

// TestManyEntries: a large table is listed whole, and of one without an end as
// much as is of use.
func TestManyEntries(t *testing.T) {
	for name, tt := range map[string]struct {
		size, want, requests int
		port                 func(i int) int
	}{
		"a thousand":       {1000, 1000, 1001, func(i int) int { return i + 1 }},
		"moving rows":      {300, 150, 301, func(i int) int { return i/2 + 1 }},
		"the same for all": {1 << 30, 1, 1 + maxRepeats, func(int) int { return 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serveRaw(t, func(conn net.Conn, _ int, request string) {
				index := requestedIndex.FindStringSubmatch(request)
				if index == nil {
					return // another attempt to connect, where the first took long
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
			n := 0
			for e, err := range s.client(t, ip1, ClientConfig{}).entries(t.Context()) {
				if n++; err != nil || int(e.ExternalPort) != n {
					t.Fatalf("row %d: %+v, %v", n, e, err)
				}
			}
			if requests := len(s.received()); n != tt.want || requests != tt.requests {
				t.Errorf("listed %d rows of %d questions, want %d of %d", n, requests, tt.want, tt.requests)
			}
		})
	}
}

// fault is the body of a refusal.
func fault(code string) string {
	return `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>` +
		`<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>` + code +
		`</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>`
}
