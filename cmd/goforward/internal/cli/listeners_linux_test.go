package cli

import (
	"fmt"
	"testing"

	"github.com/natforward/goforward/backends"
)

// TestParseSockets checks which sockets of the kernel's tables wait at a port. The lines are
// from Linux on a little-endian host.
func TestParseSockets(t *testing.T) {
	t.Parallel()
	if !isLittleEndian() {
		t.Skip("the table is in the byte order of the host")
	}
	const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8771 1 0000000000000000 100 0 0 10 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8772 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F91 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 8773 1 0000000000000000 20 4 30 10 -1
   3: 0200A8C0:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8774 1 0000000000000000 100 0 0 10 0
   4: zz:1F90 00000000:0000 0A
   5: 0100007F
`
	const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9000 1
   1: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9001 1
   2: B80D01200000000000000000010000FF:1F93 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9002 1
`
	const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1234 2 0000000000000000 0
  101: 0100007F:14EA 0100007F:0035 01 00000000:00000000 00:00000000 00000000   101        0 1235 2 0000000000000000 0
`
	for _, tt := range []struct {
		table string
		p     backends.Protocol
		port  uint16
		want  string
	}{
		{tcpTable, backends.TCP, 8080, "[127.0.0.1 0.0.0.0]"},
		{tcpTable, backends.TCP, 8081, "[]"}, // a connection
		{tcpTable, backends.TCP, 80, "[192.168.0.2]"},
		{tcpTable, backends.TCP, 8082, "[]"},
		{tcp6Table, backends.TCP, 8080, "[::]"},
		{tcp6Table, backends.TCP, 8082, "[::1]"},
		{tcp6Table, backends.TCP, 8083, "[2001:db8::ff00:1]"},
		{udpTable, backends.UDP, 5353, "[0.0.0.0]"},
		{udpTable, backends.UDP, 5354, "[]"}, // it receives only from one peer
		{"", backends.TCP, 8080, "[]"},
	} {
		if got := fmt.Sprint(parseSockets(tt.table, tt.p, tt.port)); got != tt.want {
			t.Errorf("%v port %d: %s, want %s", tt.p, tt.port, got, tt.want)
		}
	}
}

func isLittleEndian() bool {
	addr, ok := parseSocketAddr("0100007F")
	return ok && addr.IsLoopback()
}
