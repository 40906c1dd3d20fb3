package discover

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"
)

// A metric has 32 bits. The greatest one is the least preferred, also where an int
// has 32 bits.
func TestGreatestMetric(t *testing.T) {
	rtm := unhex(t, `02000000fe030001 00000000
		0800 0600 ffffffff  // RTA_PRIORITY 4294967295
		0800 0500 0a000001  // RTA_GATEWAY
		0800 0400 03000000  // RTA_OIF`)
	linux, err := parseRtmsg(rtm, binary.LittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	table := unhex(t, winTable)
	winOrder.PutUint32(table[ipforwardTableHead+ipforwardMetric:], math.MaxUint32)
	windows, err := parseIPForwardTable(table)
	if err != nil {
		t.Fatal(err)
	}
	for name, great := range map[string]route{"Linux": linux[0], "Windows": windows[0]} {
		small := great
		small.metric, small.index = 100, great.index+1
		if best, _ := longest([]route{great, small}, internet4, 0); best.index != small.index {
			t.Errorf("%s: metric %d is preferred to %d", name, great.metric, small.metric)
		}
		all := arrange([]row{{Gateway: great.gateway("", netip.Addr{})}, {Gateway: small.gateway("", netip.Addr{})}}, nil)
		if all[0].Index != small.index || all[1].Metric <= all[0].Metric {
			t.Errorf("%s: the order is %+v", name, all)
		}
	}
}
