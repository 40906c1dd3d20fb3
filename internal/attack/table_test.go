package attack_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/attack"
)

// tableRouter is a gateway with the responses of the function respond. If respond
// returns nil, the gateway sends its description or its status, or fault 401
// (invalid action).
type tableRouter struct {
	*device
	actions map[string]*atomic.Int32
}

func startTableRouter(t *testing.T, version int, respond func(action, request string) []byte) *tableRouter {
	t.Helper()
	r := &tableRouter{actions: map[string]*atomic.Int32{
		"GetGenericPortMappingEntry": {}, "GetListOfPortMappings": {}, "AddPortMapping": {},
	}}
	description := strings.ReplaceAll(descriptionOf("", "/ctl"), "WANIPConnection:1", fmt.Sprintf("WANIPConnection:%d", version))
	r.device = startDevice(t, gatewayAddr, func(d *device, conn net.Conn, request string) {
		action := actionOf(request)
		if n := r.actions[action]; n != nil {
			n.Add(1)
		}
		if response := respond(action, request); response != nil {
			_ = d.write(conn, response)
			return
		}
		switch action {
		case "":
			_ = d.write(conn, httpOK(description))
		case "GetStatusInfo", "GetExternalIPAddress":
			respondAsPublicGateway(d, conn, action)
		default:
			_ = d.write(conn, soapFault("401", "Invalid Action"))
		}
	})
	return r
}

func respondAsPublicGateway(d *device, conn net.Conn, action string) {
	_ = d.write(conn, soapResponse(action, "NewConnectionStatus", "Connected", "NewUptime", "1", "NewExternalIPAddress", "45.45.45.1"))
}

func (r *tableRouter) backend(t *testing.T) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{URL: fmt.Sprintf("http://%v/", r.addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// rowArguments returns an entry of another host, in the arguments of
// GetGenericPortMappingEntry.
func rowArguments(external int) []string {
	return []string{
		"NewRemoteHost", "", "NewExternalPort", strconv.Itoa(external), "NewProtocol", "TCP", "NewInternalPort", "80",
		"NewInternalClient", "192.168.1.9", "NewEnabled", "1", "NewPortMappingDescription", "x", "NewLeaseDuration", "0",
	}
}

var index = regexp.MustCompile(`<NewPortMappingIndex>(\d+)<`)

// respondEndlessRows returns a different entry for each index.
func respondEndlessRows(action, request string) []byte {
	m := index.FindStringSubmatch(request)
	if action != "GetGenericPortMappingEntry" || m == nil {
		return nil
	}
	i, _ := strconv.Atoi(m[1])
	return soapResponse(action, rowArguments(1+i%65535)...)
}

// naiveReadTable reads a table until its end, or until it has read limit rows.
func naiveReadTable(respond func(action, request string) []byte, limit int) (n int) {
	for n < limit {
		response := respond("GetGenericPortMappingEntry", fmt.Sprintf("<NewPortMappingIndex>%d<", n))
		if !strings.Contains(string(response), "NewExternalPort") {
			return n
		}
		n++
	}
	return n
}

// TestEndlessTable checks a gateway that reports its table by index only, without
// end. The backend needs to know whether a port is in use, and stops at its limit.
func TestEndlessTable(t *testing.T) {
	if n := naiveReadTable(respondEndlessRows, 10000); n < 10000 {
		t.Fatalf("the naive client read %d rows: the attack has no effect", n)
	}
	r := startTableRouter(t, 1, func(action, request string) []byte {
		if action == "AddPortMapping" {
			return soapResponse(action)
		}
		return respondEndlessRows(action, request)
	})
	checkNoLeaks(t, func() {
		b := r.backend(t)
		high := webRequest
		high.External, high.Lifetime = webRequest.Internal, backends.Forever
		if m, err := b.Map(t.Context(), high); err != nil || m.External.Port() != 8080 {
			t.Errorf("Map: %v, %v", m.External, err)
		}
		_ = b.Close()
	})
	if n := r.actions["GetGenericPortMappingEntry"].Load(); n == 0 || n > 300 {
		t.Errorf("the backend requested %d rows", n)
	}
}

// TestEndlessList checks that listing a table without end stops when the context
// ends, and yields the rows read until then.
func TestEndlessList(t *testing.T) {
	r := startTableRouter(t, 1, respondEndlessRows)
	checkNoLeaks(t, func() {
		b := r.backend(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		for _, err := range b.List(ctx) {
			switch {
			case err == nil:
				n++
			case !errors.Is(err, context.Canceled):
				t.Error(err)
			}
			if n == 200 {
				cancel()
			}
		}
		if n != 200 {
			t.Errorf("%d rows", n)
		}
		_ = b.Close()
	})
}

// maxRows is the largest number of rows that List reads.
const maxRows = 8192

// TestEndlessRanges checks a gateway that reports too many entries for each range
// of ports, and the same entries repeatedly.
func TestEndlessRanges(t *testing.T) {
	var list strings.Builder
	for i := range 256 {
		list.WriteString("<PortMappingEntry><NewExternalPort>" + strconv.Itoa(1+i) + "</NewExternalPort><NewProtocol>TCP</NewProtocol>" +
			"<NewInternalPort>80</NewInternalPort></PortMappingEntry>")
	}
	listing := soapResponse("GetListOfPortMappings", "NewPortListing", "<PortMappingList>"+list.String()+"</PortMappingList>")
	r := startTableRouter(t, 2, func(action, _ string) []byte {
		if action == "GetListOfPortMappings" {
			return listing
		}
		return nil
	})
	// A naive client keeps all rows: 1024 ranges of 256 rows are 262 144.
	if n := 2 * 65536 / 128 * strings.Count(string(listing), "<PortMappingEntry>"); n <= maxRows {
		t.Fatalf("%d rows: the attack has no effect", n)
	}
	b := r.backend(t)
	n := 0
	for _, err := range b.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n > maxRows {
			t.Fatalf("more than %d rows, of which 256 differ", maxRows)
		}
	}
}

// TestManyEndlessTables checks a gateway whose services each list more entries than List
// reads. Without a common limit, the rows of all services would be read.
func TestManyEndlessTables(t *testing.T) {
	service := regexp.MustCompile("<service>.*</service>")
	var rows atomic.Int32
	r := startTableRouter(t, 2, func(action, request string) []byte {
		switch action {
		case "":
			return httpOK(service.ReplaceAllStringFunc(strings.ReplaceAll(descriptionOf("", "/ctl"), "Connection:1<", "Connection:2<"), func(s string) string {
				return s + strings.ReplaceAll(s, "/ctl", "/ctl2") + strings.ReplaceAll(s, "/ctl", "/ctl3")
			}))
		case "GetListOfPortMappings":
			var list strings.Builder
			for range 256 {
				fmt.Fprintf(&list, "<PortMappingEntry><NewExternalPort>%d</NewExternalPort><NewProtocol>TCP</NewProtocol>"+
					"<NewInternalPort>%d</NewInternalPort></PortMappingEntry>", rows.Add(1), 1+strings.Count(request, "/ctl2"))
			}
			return soapResponse(action, "NewPortListing", "<PortMappingList>"+list.String()+"</PortMappingList>")
		}
		return nil
	})
	b, n := r.backend(t), 0
	for _, err := range b.List(t.Context()) {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if n != maxRows || rows.Load() < maxRows {
		t.Errorf("%d rows, the gateway reported %d", n, rows.Load())
	}
}

// TestWildcardDuplicate checks a gateway that refuses a second mapping of an
// endpoint, and lists the first one under external port 0, which means all ports.
// The backend must not return this mapping.
func TestWildcardDuplicate(t *testing.T) {
	var mapped atomic.Bool
	r := startTableRouter(t, 1, func(action, request string) []byte {
		duplicate := append([]string(nil), rowArguments(0)...)
		duplicate[7], duplicate[9] = "8080", "127.0.0.1"
		switch {
		case action == "GetSpecificPortMappingEntry":
			return soapFault("714", "NoSuchEntryInArray")
		case action == "AddPortMapping" && mapped.Load():
			return soapFault("718", "ConflictInMappingEntry")
		case action == "AddPortMapping":
			mapped.Store(true)
			return soapResponse(action)
		case action == "GetGenericPortMappingEntry":
			return soapResponse(action, duplicate...)
		}
		return nil
	})
	if duplicate := rowArguments(0); duplicate[3] != "0" { // the port that a naive client takes over
		t.Fatal("the attack has no effect")
	}
	b := r.backend(t)
	forever := webRequest
	forever.Lifetime = backends.Forever
	old := backends.Mapping{
		Backend: upnp.Name, Protocol: webRequest.Protocol, Internal: webRequest.Internal, External: webRequest.External, Lifetime: backends.Forever, Token: backends.NewToken([]byte("x")),
	}
	mapped.Store(true)
	m, err := b.Renew(t.Context(), old, forever)
	if err == nil {
		err = attack.Check(m, webRequest)
	}
	if err == nil || errors.Is(err, backends.ErrInvalid) || !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Renew: %+v, %v, want ErrConflict", m, err)
	}
}
