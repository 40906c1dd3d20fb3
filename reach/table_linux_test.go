package reach

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/natforward/goforward/backends"
)

// Tables of Linux on a little-endian host.
const (
	tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8771 1 0000000000000000 100 0 0 10 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8772 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F91 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 8773 1 0000000000000000 20 4 30 10 -1
   3: 0200A8C0:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8774 1 0000000000000000 100 0 0 10 0
   4: zz:1F90 00000000:0000 0A
   5: 0100007F
   6: 0200A8C0:1F91 012E2E2E:D432 03 00000000:00000000 01:00000063 00000000     0        0 0 1 0000000000000000
   7: 0200A8C0:1F91 022E2E2E:0050 02 00000001:00000000 01:00000062 00000000     0        0 8775 2 0000000000000000 100 0 0 10 -1
   8: 0200A8C0:1F91 032E2E2E:D433 06 00000000:00000000 03:000016B7 00000000     0        0 0 3 0000000000000000
`
	tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9000 1
   1: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9001 1
   2: B80D01200000000000000000010000FF:1F93 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9002 1
   3: 0000000000000000FFFF00000200A8C0:1F94 0000000000000000FFFF0000012E2E2E:D431 01 00000000:00000000 00:00000000 00000000     0        0 9003 1
`
	udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1234 2 0000000000000000 0
  101: 0100007F:14EA 0100007F:0035 01 00000000:00000000 00:00000000 00000000   101        0 1235 2 0000000000000000 0
`
)

// TestParseTable checks which sockets of the kernel's tables wait at a port, and which belong to
// connections.
func TestParseTable(t *testing.T) {
	t.Parallel()
	if addr, ok := parseEndpoint("0100007F:0000"); !ok || !addr.Addr().IsLoopback() {
		t.Skip("the tables of this test are in the byte order of a little-endian host")
	}
	for _, tt := range []struct {
		table    string
		protocol backends.Protocol
		port     uint16
		listens  string
		open     string
	}{
		{tcpTable, backends.TCP, 8080, "[127.0.0.1 0.0.0.0]", "[]"},
		{tcpTable, backends.TCP, 8081, "[]", "[127.0.0.1:54321 46.46.46.3:54323]"}, // not those that only begin
		{tcpTable, backends.TCP, 80, "[192.168.0.2]", "[]"},
		{tcpTable, backends.TCP, 8082, "[]", "[]"},
		{tcp6Table, backends.TCP, 8080, "[::]", "[]"},
		{tcp6Table, backends.TCP, 8082, "[::1]", "[]"},
		{tcp6Table, backends.TCP, 8083, "[2001:db8::ff00:1]", "[]"},
		{tcp6Table, backends.TCP, 8084, "[]", "[46.46.46.1:54321]"},
		{udpTable, backends.UDP, 5353, "[0.0.0.0]", "[]"},
		{udpTable, backends.UDP, 5354, "[]", "[]"}, // it receives only from one peer
		{"", backends.TCP, 8080, "[]", "[]"},
	} {
		listens, open := []netip.Addr{}, []netip.AddrPort{}
		for _, s := range parseTable(tt.table, tt.protocol, tt.port) {
			if s.listens {
				listens = append(listens, s.local)
			}
			if s.open {
				open = append(open, s.remote)
			}
		}
		if got, want := fmt.Sprint(listens, open), tt.listens+" "+tt.open; got != want {
			t.Errorf("%v port %d: %s, want %s", tt.protocol, tt.port, got, want)
		}
	}
}

// TestReadProc checks that a table that is longer than the buffer is read to its end.
func TestReadProc(t *testing.T) {
	t.Parallel()
	name := t.TempDir() + "/table"
	want := bytes.Repeat([]byte(tcpTable), 100)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readProc(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	if got, err := readProc(name + "2"); err == nil {
		t.Errorf("a missing file has %d bytes", len(got))
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add(tcpTable, uint16(8080))
	f.Add(tcp6Table, uint16(8082))
	f.Add(udpTable, uint16(5353))
	f.Fuzz(func(t *testing.T, table string, port uint16) {
		for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
			for _, s := range parseTable(table, p, port) {
				checkSocket(t, s)
			}
		}
	})
}
