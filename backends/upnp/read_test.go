package upnp_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const (
	byIndex = "GetGenericPortMappingEntry"
	inLists = "GetListOfPortMappings"
)

// addRows adds a row for each letter: T for TCP, U for UDP.
func addRows(t *testing.T, gw *gatewaytest.Gateway, letters string) {
	t.Helper()
	for i, letter := range letters {
		addRow(t, gw, map[rune]backends.Protocol{'T': backends.TCP, 'U': backends.UDP}[letter], uint16(1000+i))
	}
}

func addRow(t *testing.T, gw *gatewaytest.Gateway, p backends.Protocol, port uint16) {
	t.Helper()
	err := gw.AddMapping(gatewaytest.Entry{
		Protocol: p, Internal: netip.MustParseAddrPort("192.168.77.9:9"), External: netip.AddrPortFrom(gw.External(), port), Description: "a row",
	})
	if err != nil {
		t.Error(err)
	}
}

// rowsOf returns the rows that List yields.
func rowsOf(t *testing.T, b *upnp.Backend) (rows []string) {
	t.Helper()
	for e, err := range b.List(t.Context()) {
		if err != nil {
			t.Fatalf("after %d rows: %v", len(rows), err)
		}
		rows = append(rows, row(e))
	}
	return rows
}

func row(e backends.Entry) string {
	m := e.Mapping
	return fmt.Sprint(m.Protocol, m.External.Port(), m.Internal, m.Remote, m.Description, m.Lifetime, e.Enabled)
}

// checkRows compares the rows with those that the index shows, one after another.
func checkRows(t *testing.T, b *upnp.Backend, rows []string, want int) {
	t.Helper()
	if len(rows) != want {
		t.Fatalf("listed %d rows, want %d", len(rows), want)
	}
	for i, got := range rows {
		if e, err := b.EntryAt(t.Context(), i); err != nil || got != row(e) {
			t.Fatalf("row %d is %s, want %s, %v", i, got, row(e), err)
		}
	}
}

// TestReadRequests checks the order of the rows, and how many requests read them.
func TestReadRequests(t *testing.T) {
	t.Parallel()
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		version     int
		listing     listing
		rows        string
		index, list int
	}{
		"small":                        {0, listing{}, strings.Repeat("T", 5), 6, 0},
		"at the limit of the index":    {0, listing{}, strings.Repeat("TU", 12), 26, 0},
		"above the limit of the index": {0, listing{}, strings.Repeat("T", 25), 9, 2},
		"one protocol":                 {0, listing{}, strings.Repeat("U", 60), 10, 2},
		"at the limit of the lists":    {0, listing{RangeCrashes: true}, strings.Repeat("T", 100), 9, 2},
		"above the limit of the lists": {0, listing{RangeCrashes: true}, strings.Repeat("T", 101), 104, 0},
		"would crash":                  {0, listing{RangeCrashes: true}, strings.Repeat("T", 140), 143, 0},
		"escaped lists":                {0, listing{RangeEscaped: true}, strings.Repeat("T", 60), 10, 2},
		"two blocks":                   {0, listing{}, strings.Repeat("T", 50) + strings.Repeat("U", 40), 13, 2},
		"in turns":                     {0, listing{}, strings.Repeat("TU", 50), 55, 2},
		"pairs":                        {0, listing{}, strings.Repeat("TTUU", 15), 35, 2},
		"another fault at the end":     {0, listing{EndOfList: 501}, strings.Repeat("T", 60), 10, 2},
		"a vendor's fault at the end":  {0, listing{EndOfList: 850}, strings.Repeat("T", 60), 63, 0},
		"version 1":                    {1, listing{}, strings.Repeat("T", 60), 61, 0},
		"no lists":                     {0, listing{NoRange: true}, strings.Repeat("T", 60), 63, 1},
		"lists reset the connection":   {0, listing{RangeResets: true}, strings.Repeat("T", 60), 63, 2},
		"endless":                      {0, listing{Endless: true}, strings.Repeat("T", 60), 78, 0},
		"a malformed row":              {0, listing{MalformedRow: true}, strings.Repeat("T", 60), 61, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Version: tt.version, Listing: tt.listing})
			b.ReadOneByOne()
			addRows(t, gw, tt.rows)
			rows := rowsOf(t, b)
			if index, list := count(gw, byIndex), count(gw, inLists); index != tt.index || list != tt.list {
				t.Errorf("%d requests by index and %d lists, want %d and %d", index, list, tt.index, tt.list)
			}
			if !tt.listing.MalformedRow {
				checkRows(t, b, rows, len(tt.rows))
			} else if len(rows) != len(tt.rows)-1 {
				t.Errorf("listed %d rows", len(rows))
			}
		})
	}
}

// TestReadDoubtfulLists checks that the index decides if the lists of a device are not
// complete or differ from it, and that they are not requested again soon.
func TestReadDoubtfulLists(t *testing.T) {
	t.Parallel()
	replace := func(old, replacement string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(replacement), 1) }
	}
	const port = "<p:NewExternalPort>1030<"
	for name, corrupt := range map[string]func([]byte) []byte{
		"a row is missing":            replace("p:PortMappingEntry>", "p:OtherMappingEntry>"),
		"the first row is another":    replace(port[:19]+"1000<", port[:19]+"2000<"),
		"the last row is another":     replace(port[:19]+"1059<", port[:19]+"2000<"),
		"a row is repeated":           replace(port, port[:19]+"1029<"),
		"a row is malformed":          replace(port, port[:19]+"abcd<"),
		"rows have other addresses":   func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("192.168.77.9"), []byte("192.168.77.8")) },
		"rows have no descriptions":   func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(">a row<"), []byte("><")) },
		"only half of it arrives":     func(b []byte) []byte { return b[:len(b)/2] },
		"nothing arrives":             func([]byte) []byte { return nil },
		"all rows have the same port": func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(port[:22]), []byte(port[:19]+"9>1<!--")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			addRows(t, gw, strings.Repeat("U", 60))
			gw.Inject(gatewaytest.Fault{Corrupt: corrupt, Match: func(q gatewaytest.Request) bool {
				return q.Action == inLists && strings.Contains(string(q.Raw), ">UDP<")
			}})
			rows := rowsOf(t, b)
			checkRows(t, b, rows, 60)
			before := count(gw, inLists)
			if before < 2 {
				t.Errorf("%d lists", before)
			}
			if again := rowsOf(t, b); len(again) != 60 || count(gw, inLists) != before {
				t.Errorf("listed %d rows again, with %d more lists", len(again), count(gw, inLists)-before)
			}
		})
	}
}

// TestReadChangingTable changes the table before a request. With each method, rows that
// do not change are listed exactly once, and in their order.
func TestReadChangingTable(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, gw *gatewaytest.Gateway){
		"a row is added":    func(t *testing.T, gw *gatewaytest.Gateway) { addRow(t, gw, backends.UDP, 3000) },
		"many rows are":     func(t *testing.T, gw *gatewaytest.Gateway) { addRows(t, gw, strings.Repeat("T", 80)) },
		"the last row goes": func(_ *testing.T, gw *gatewaytest.Gateway) { gw.RemoveMapping(backends.TCP, 2059) },
	} {
		for request, match := range map[string]func(gatewaytest.Request) bool{
			"the first list":  func(q gatewaytest.Request) bool { return q.Action == inLists && bytes.Contains(q.Raw, []byte(">TCP<")) },
			"the second list": func(q gatewaytest.Request) bool { return q.Action == inLists && bytes.Contains(q.Raw, []byte(">UDP<")) },
			"the end":         func(q gatewaytest.Request) bool { return bytes.Contains(q.Raw, []byte("Index>60<")) },
			"the last row":    func(q gatewaytest.Request) bool { return bytes.Contains(q.Raw, []byte("Index>59<")) },
		} {
			t.Run(name+", "+request, func(t *testing.T) {
				t.Parallel()
				gw, b := startBackend(t, quirks.UPnP{})
				for i := range uint16(60) {
					addRow(t, gw, backends.TCP, 2000+i)
				}
				gw.Inject(gatewaytest.Fault{Times: 1, Match: func(q gatewaytest.Request) bool {
					if match(q) {
						change(t, gw)
						return true
					}
					return false
				}})
				rows := rowsOf(t, b)
				for i := range 59 {
					if i >= len(rows) || !strings.HasPrefix(rows[i], fmt.Sprint(backends.TCP, 2000+i)) {
						t.Fatalf("row %d of %d: %v", i, len(rows), rows[min(i, len(rows)-1)])
					}
				}
			})
		}
	}
}
