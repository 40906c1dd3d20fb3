package discover

import (
	"errors"
	"net/netip"
	"testing"
)

// winTable is a MIB_IPFORWARD_TABLE2, laid out by hand from netioapi.h and ws2ipdef.h.
const winTable = `
	03000000 00000000               // NumEntries, padding

	0000000000000600 0c000000       // InterfaceLuid, InterfaceIndex
	0200 0000 00000000 00*20 00 00*3 // DestinationPrefix: 0.0.0.0, length, padding
	0200 0000 c0a80101 00*20        // NextHop 192.168.1.1
	00 00*3 ffffffff ffffffff       // SitePrefixLength, lifetimes
	19000000 03000000               // Metric 25, Protocol NETMGMT
	00 00 00 01 10000000 00000000   // Loopback, Autoconfigure, Publish, Immortal, Age, Origin

	0000000000000600 0c000000
	1700 0000 00000000 00*16 00000000 00 00*3               // ::/0
	1700 0000 00000000 fe800000000000000000000000000001 0c000000 // fe80::1, scope 12
	00 00*3 08070000 08070000
	00010000 03000000
	00 01 00 00 10000000 03000000

	0000000000001700 01000000
	0200 0000 7f000001 00*20 20 00*3 // 127.0.0.1/32
	0200 0000 00000000 00*20        // no next hop
	00 00*3 ffffffff ffffffff
	00010000 02000000
	01 00 00 01 10000000 00000000`

func TestParseIPForwardTable(t *testing.T) {
	b := unhex(t, winTable)
	if want := ipforwardTableHead + 3*ipforwardSize; len(b) != want {
		t.Fatalf("test data has %d bytes, not %d", len(b), want)
	}
	got, err := parseIPForwardTable(b)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, []route{
		{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.168.1.1"), index: 12, metric: 25},
		{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 12, metric: 256},
		{dst: netip.MustParsePrefix("127.0.0.1/32"), index: 1, metric: 256, refusal: "it is this host"},
	})
	for n := range b {
		if got, err := parseIPForwardTable(b[:n]); !errors.Is(err, errMalformed) {
			t.Errorf("cut to %d: got %+v, %v", n, got, err)
		}
		if got, err := parseIPForwardRow(b[:min(n, ipforwardSize-1)]); !errors.Is(err, errMalformed) {
			t.Errorf("row cut to %d: got %+v, %v", n, got, err)
		}
	}
}

func TestParseIPForwardMalformed(t *testing.T) {
	for name, change := range map[string]func(row []byte){
		"family":            func(row []byte) { row[ipforwardDst] = 1 },
		"next hop's family": func(row []byte) { row[ipforwardNextHop] = 0 },
		"prefix too long":   func(row []byte) { row[ipforwardDstLen] = 33 },
	} {
		b := unhex(t, winTable)
		change(b[ipforwardTableHead:])
		if got, err := parseIPForwardTable(b); !errors.Is(err, errMalformed) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func TestSockaddrInet(t *testing.T) {
	equal(t, appendSockaddrInet(nil, internet4, 0), unhex(t, `0200 0000 c6290004 00*20`))
	equal(t, appendSockaddrInet(nil, netip.MustParseAddr("fe80::1%eth0"), 12),
		unhex(t, `1700 0000 00000000 fe800000000000000000000000000001 0c000000`))
	for n := range sockaddrInetSize {
		if _, err := parseSockaddrInet(appendSockaddrInet(nil, internet4, 0)[:n]); !errors.Is(err, errMalformed) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
}

func TestParseInterfaceMetric(t *testing.T) {
	b := unhex(t, `
		0200 00*6 0000000000000600 0c000000 00000000 // Family, InterfaceLuid, InterfaceIndex, MaxReassemblySize
		00*8 58020000 c8000000                       // InterfaceIdentifier, router advertisement intervals
		00 00 00 00 01 01 00 01 00 00*3              // nine BOOLEANs
		02000000 03000000 30750000 e8030000 00*4     // RouterDiscoveryBehavior … PathMtuDiscoveryTimeout
		00*4 00*4 00*64                              // link-local behaviour and timeout, ZoneIndices
		40000000 19000000 dc050000                   // SitePrefixLength, Metric 25, NlMtu
		01 00 01 01 30750000 00 00 00 00             // Connected …`)
	if len(b) != ipinterfaceSize {
		t.Fatalf("test data has %d bytes, not %d", len(b), ipinterfaceSize)
	}
	got, err := parseInterfaceMetric(b)
	if got != 25 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	for n := range b {
		if _, err := parseInterfaceMetric(b[:n]); !errors.Is(err, errMalformed) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
}

func FuzzParseIPForwardTable(f *testing.F) {
	f.Add(unhex(f, winTable))
	f.Add(unhex(f, `ffffffff 00000000 00*104`))
	f.Fuzz(func(t *testing.T, b []byte) {
		routes, err := parseIPForwardTable(b)
		checkRoutes(t, routes, err)
	})
}
