package port5351

import (
	"slices"
	"testing"
	"time"
)

// TestEpoch checks the rules of RFC 6887 section 8.5 and RFC 6886 section 3.6 for
// two epochs. All columns are in seconds.
func TestEpoch(t *testing.T) {
	for _, v := range []struct {
		before, elapsed, now int64
		pcp, natpmp          bool // lost
	}{
		{1000, 0, 1000, false, false},
		{1000, 0, 999, false, false},
		{1000, 1, 999, false, false},
		{1000, 2, 999, true, true},
		{1000, 0, 998, true, false},
		{1000, 100, 1100, false, false},
		{1000, 100, 1094, false, false},
		{1000, 100, 1092, false, false},
		{1000, 100, 1091, true, false},
		{1000, 100, 1108, false, false},
		{1000, 100, 1109, true, false},
		{1000, 100, 1110, true, false},
		{1000, 100, 1086, true, false},
		{1000, 100, 1085, true, true},
		{1000, 3600, 4600, false, false},
		{1000, 3600, 4373, false, false},
		{1000, 3600, 4372, true, false},
		{1000, 3600, 4148, true, false},
		{1000, 3600, 4147, true, true},
		{1000, 3600, 4837, false, false},
		{1000, 3600, 4842, false, false},
		{1000, 3600, 4843, true, false},
		{1000, 3600, 4844, true, false},
		{1000, 60, 50, true, true},
		{0, 2, 0, false, false},
		{0, 3, 0, true, true},
		{0, 100, 4294967295, true, false},
	} {
		for name, rule := range map[string]struct {
			lost epochRule
			want bool
		}{"PCP": {pcpLost, v.pcp}, "NAT-PMP": {natpmpLost, v.natpmp}} {
			var c epochClock
			at := time.Now()
			if lost, _ := c.observe(time.Duration(v.before)*time.Second, at, at, rule.lost); lost {
				t.Errorf("%s %+v: the first epoch counts as a loss", name, v)
			}
			later := at.Add(time.Duration(v.elapsed) * time.Second)
			if got, _ := c.observe(time.Duration(v.now)*time.Second, later, later, rule.lost); got != rule.want {
				t.Errorf("%s %+v: lost is %v", name, v, got)
			}
		}
	}
}

// TestEpochSince checks the time of a restart: it follows from the epoch if the
// gateway started after the previous response. It is not later than the time of the
// request.
func TestEpochSince(t *testing.T) {
	first := time.Now()
	sent := first.Add(100*time.Second - 100*time.Millisecond)
	received := first.Add(100 * time.Second)
	for now, want := range map[time.Duration]time.Time{
		0:                  sent,
		time.Second:        received.Add(-time.Second),
		99 * time.Second:   received.Add(-99 * time.Second),
		100 * time.Second:  {}, // the gateway's clock was set
		1050 * time.Second: {},
	} {
		var c epochClock
		c.observe(1000*time.Second, first, first, pcpLost)
		if lost, since := c.observe(now, sent, received, pcpLost); !lost || !since.Equal(want) {
			t.Errorf("%v: lost %v, since %v, want %v", now, lost, since, want)
		}
	}
}

// TestEpochStuck checks that an epoch that stands still shows one loss, and that it shows a loss
// again once it has moved.
func TestEpochStuck(t *testing.T) {
	for name, rule := range map[string]epochRule{"PCP": pcpLost, "NAT-PMP": natpmpLost} {
		var c epochClock
		at := time.Now()
		var got []bool
		for _, step := range []struct{ elapsed, epoch int }{ // in seconds
			{0, 0}, {1, 0}, {30, 0}, {1, 0}, {30, 0}, {30, 0}, {30, 30}, {30, 60}, {30, 0}, {30, 0}, {30, 0},
		} {
			at = at.Add(time.Duration(step.elapsed) * time.Second)
			lost, _ := c.observe(time.Duration(step.epoch)*time.Second, at, at, rule)
			got = append(got, lost)
		}
		want := []bool{false, false, true, false, false, false, false, false, true, true, false}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
