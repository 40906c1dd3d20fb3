package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

var (
	flagDowntime     = flag.Duration("downtime", 0, "how long TestDowntime waits for each candidate after a restart; 0: the short form, a minute with few restarts")
	flagDowntimeJSON = flag.String("downtime-json", "", "file for the result of TestDowntime")
)

// outage is a router that restarts without an announcement. Its epoch is the uptime of the
// machine and starts at 0 with the restart, as if the router had been running for a long time.
type outage struct {
	key, title string
	router     lab.Router
	away       time.Duration
	without    []string // the candidates that do not support the protocols of the router
	short      bool     // part of the short form

	epochGoesOn bool // the epoch does not show the restart
}

var outages = []outage{
	{key: "all", title: "NAT-PMP, PCP and UPnP", short: true},
	{key: "all-90s", title: "NAT-PMP, PCP and UPnP", away: 90 * time.Second},
	{key: "all-300s", title: "NAT-PMP, PCP and UPnP", away: 300 * time.Second},
	{key: "all-clock", title: "the same, with an epoch that survives the restart", epochGoesOn: true},
	{key: "natpmp", title: "NAT-PMP only", router: lab.Router{NoPCP: true, NoUPnP: true}, without: []string{libp2pName}},
	{key: "pcp", title: "PCP only", router: lab.Router{NoNATPMP: true, NoUPnP: true}, without: []string{libp2pName, gethName, syncthingName}},
	{key: "upnp", title: "UPnP only", router: lab.Router{Refuse5351: true}, short: true},
}

// idle is a process whose traffic is measured while nothing happens.
type idle struct {
	key, title string
	router     lab.Router
	candidate  string
	mappings   int
	short      bool // part of the short form
}

var idles = func() []idle {
	all := idle{key: "all", title: "NAT-PMP, PCP and UPnP", router: lab.Router{DaemonUptime: true}}
	var out []idle
	for _, n := range []int{1, 50} {
		for _, i := range []idle{
			{key: "natpmp", title: "NAT-PMP only", router: lab.Router{DaemonUptime: true, NoPCP: true, NoUPnP: true}},
			{key: "pcp", title: "PCP only", router: lab.Router{DaemonUptime: true, NoNATPMP: true, NoUPnP: true}},
			{key: "upnp", title: "UPnP only", router: lab.Router{DaemonUptime: true, Refuse5351: true}},
			{key: "natpmp-upnp", title: "NAT-PMP and UPnP", router: lab.Router{DaemonUptime: true, NoPCP: true}},
			all,
		} {
			i.candidate, i.mappings = goforwardName, n
			i.short = i.key == "all" && n == 1
			out = append(out, i)
		}
	}
	for _, k := range keepers[1:] {
		i := all
		i.candidate, i.mappings = k.name, 1
		out = append(out, i)
	}
	return out
}()

const (
	shortLimit = time.Minute
	mapLimit   = 90 * time.Second // the time for the first mapping; many processes start at once
	firstPort  = 21000
)

// site is one home with its processes.
type site struct {
	home      *lab.HomeNet
	processes []*keeperProcess
	mapped    []time.Time // when bytes first arrived; zero: never
}

// downtime is the state of TestDowntime.
type downtime struct {
	Downtime
	short bool
	rng   *rand.Rand
}

// TestDowntime measures for how long mappings are lost after a router restarts without an
// announcement, and the traffic of idle mappings. All routers and all candidates run at the
// same time, because the processes mostly wait.
func TestDowntime(t *testing.T) {
	d := newDowntime(t.Context())
	t.Logf("seed %d, limit %v", d.Seed, d.Limit)
	restarts := chosen(outages, func(o outage) bool { return o.short || !d.short }, func(o outage) string { return "downtime-" + o.key })
	quiet := chosen(idles, func(i idle) bool { return i.short || !d.short }, func(i idle) string { return "traffic-" + i.key })

	var homes []*site
	for _, o := range restarts {
		homes = append(homes, d.build(t, o.router, "d-"+o.key, keepTasks(o.without)))
	}
	var quietHomes []*site
	for n, i := range quiet {
		quietHomes = append(quietHomes, d.build(t, i.router, fmt.Sprintf("t-%d-%s", n, i.key), []keepTask{trafficTask(i)}))
	}
	d.progress("%d homes are running", len(homes)+len(quietHomes))
	waitMapped(t.Context(), append(slices.Clone(homes), quietHomes...))

	counted := make([]*counter, len(quiet))
	for n := range quiet {
		counted[n] = newCounter(t, quietHomes[n])
	}
	d.restartAll(t, restarts, homes)
	for n, i := range quiet {
		time.Sleep(d.Limit - counted[n].age())
		d.Traffic = append(d.Traffic, counted[n].result(t, i, quietHomes[n]))
	}
	d.Took = time.Since(d.Date)
	d.check(t)
	d.write(t)
}

func newDowntime(ctx context.Context) *downtime {
	d := &downtime{short: *flagDowntime == 0 || testing.Short()}
	d.Date, d.Limit, d.Seed = time.Now(), *flagDowntime, *flagSeed
	d.describe(ctx)
	if d.short {
		d.Limit = shortLimit
	}
	if d.Seed == 0 {
		d.Seed = rand.Uint64()
	}
	d.rng = rand.New(rand.NewPCG(d.Seed, 0))
	return d
}

// chosen returns the elements that the flag -only names, or else the default ones.
func chosen[T any](all []T, byDefault func(T) bool, key func(T) string) []T {
	var out []T
	for _, x := range all {
		if *flagOnly == "" && byDefault(x) || *flagOnly != "" && slices.Contains(strings.Split(*flagOnly, ","), key(x)) {
			out = append(out, x)
		}
	}
	return out
}

// progress writes the progress of a full run to standard error, because such a run takes long.
func (d *downtime) progress(format string, args ...any) {
	if !d.short {
		fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
	}
}

// keepTasks returns one task for each keeper, except those without support for the router,
// each with a port of its own.
func keepTasks(without []string) []keepTask {
	var out []keepTask
	for n, k := range keepers {
		if !slices.Contains(without, k.name) {
			out = append(out, keepTask{Candidate: k.name, Ports: []uint16{firstPort + uint16(n)}})
		}
	}
	return out
}

func trafficTask(i idle) keepTask {
	task := keepTask{Candidate: i.candidate}
	for n := range i.mappings {
		task.Ports = append(task.Ports, firstPort+uint16(n))
	}
	return task
}

// build starts a router and the processes behind it. The announcements of the router are
// dropped.
func (d *downtime) build(t *testing.T, router lab.Router, name string, tasks []keepTask) *site {
	t.Helper()
	s := &site{home: lab.Home(t, router), mapped: make([]time.Time, len(tasks))}
	s.home.Router.Rule(t, "output", `ip daddr { 224.0.0.1, 239.255.255.250 } drop`)
	s.home.Router.Rule(t, "output", `ip6 daddr ff00::/8 drop`)
	for _, task := range tasks {
		// The processes of one home share the directories of a user, and no others.
		runtimeDir := filepath.Join("/run", name)
		if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cmd := s.home.Lan.Command(ctx, executable(t))
		p, err := startKeeper(cmd, cancel, task, "XDG_RUNTIME_DIR="+runtimeDir, "XDG_STATE_HOME="+runtimeDir, "HOME="+runtimeDir)
		if err != nil {
			cancel()
			t.Fatal(err)
		}
		t.Cleanup(p.close)
		s.processes = append(s.processes, p)
	}
	return s
}

// waitMapped waits until the mapping of each process is reachable, for at most mapLimit.
func waitMapped(ctx context.Context, sites []*site) {
	ctx, cancel := context.WithTimeout(ctx, mapLimit)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range sites {
		for n, p := range s.processes {
			wg.Go(func() {
				if p.waitReachable(ctx, s.home.Wan.Dial, true) {
					s.mapped[n] = time.Now()
				}
			})
		}
	}
	wg.Wait()
}

// settleTime returns a random time between the first mapping and the restart, so that the
// restarts happen at different phases of the candidates' intervals.
func (d *downtime) settleTime() time.Duration {
	if d.short {
		return 8*time.Second + time.Duration(d.rng.Int64N(int64(7*time.Second)))
	}
	return 30*time.Second + time.Duration(d.rng.Int64N(int64(30*time.Second)))
}

// restartAll restarts every router and measures until each mapping is restored, or the limit
// has passed.
func (d *downtime) restartAll(t *testing.T, restarts []outage, sites []*site) {
	type event struct {
		at  time.Time
		run func()
	}
	var (
		events []event
		wg     sync.WaitGroup
	)
	start := time.Now()
	d.Restarts = make([]Restart, len(restarts))
	for n, o := range restarts {
		r, s := &d.Restarts[n], sites[n]
		*r = Restart{Key: o.key, Router: o.title, Away: o.away, Recoveries: make([]Recovery, len(s.processes))}
		off := start.Add(d.settleTime())
		events = append(events,
			event{off, func() {
				d.powerOff(t, r, s)
				if !o.epochGoesOn {
					s.home.Daemon.ResetEpoch(t)
				}
			}},
			event{off.Add(o.away), func() {
				s.home.Daemon.Start(t)
				ready := time.Now()
				d.progress("%s: the router replies again", r.Key)
				for i, p := range s.processes {
					wg.Go(func() { d.recover(t.Context(), &r.Recoveries[i], r.Key, p, s, ready) })
				}
			}})
	}
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	for _, e := range events {
		time.Sleep(time.Until(e.at))
		e.run()
	}
	wg.Wait()
}

// powerOff stops the router and deletes its mappings. It fails the test if a mapping is still
// reachable.
func (d *downtime) powerOff(t *testing.T, r *Restart, s *site) {
	t.Helper()
	for i, p := range s.processes {
		c := &r.Recoveries[i]
		*c = Recovery{Candidate: p.name, Network: p.network, Protocol: p.protocol(), Before: p.endpoints()}
		switch {
		case p.failure() != "":
			c.Err = p.failure()
		case s.mapped[i].IsZero():
			c.Err = fmt.Sprintf("not reachable within %v", mapLimit)
		case !p.waitReachable(t.Context(), s.home.Wan.Dial, true):
			c.Err = "no longer reachable"
		default:
			c.Held = time.Since(s.mapped[i])
		}
	}
	s.home.Daemon.Kill(t)
	s.home.Daemon.Forget(t)
	for _, p := range s.processes {
		if p.reachable(t.Context(), s.home.Wan.Dial) {
			t.Errorf("%s: %s is reachable although the router has no rules", r.Key, p.name)
		}
	}
}

// recover waits until the mapping is reachable again.
func (d *downtime) recover(ctx context.Context, c *Recovery, key string, p *keeperProcess, s *site, ready time.Time) {
	if c.Err != "" {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, ready.Add(d.Limit))
	defer cancel()
	c.Restored = p.waitReachable(ctx, s.home.Wan.Dial, true)
	c.Took, c.After, c.Protocol = time.Since(ready), p.endpoints(), p.protocol()
	d.progress("%s: %s: %s", key, p.name, c.text(d.Limit))
}

// counter counts the packets between one host and its router.
type counter struct {
	start          time.Time
	packets, bytes int // at the start
}

// newCounter starts a measurement.
func newCounter(t *testing.T, s *site) *counter {
	t.Helper()
	lan := s.home.Lan.Addr().String()
	s.home.Router.Rule(t, "input", "ip saddr "+lan+` counter comment "idle"`)
	s.home.Router.Rule(t, "output", "ip daddr "+lan+` counter comment "idle"`)
	c := &counter{start: time.Now()}
	c.packets, c.bytes = readCounters(t, s)
	return c
}

var counterLine = regexp.MustCompile(`counter packets (\d+) bytes (\d+) comment "idle"`)

func readCounters(t *testing.T, s *site) (packets, size int) {
	t.Helper()
	for _, m := range counterLine.FindAllStringSubmatch(s.home.Router.Ruleset(t), -1) {
		p, _ := strconv.Atoi(m[1]) // the pattern permits only digits
		b, _ := strconv.Atoi(m[2])
		packets, size = packets+p, size+b
	}
	return packets, size
}

func (c *counter) age() time.Duration { return time.Since(c.start) }

// result ends the measurement.
func (c *counter) result(t *testing.T, i idle, s *site) Traffic {
	t.Helper()
	out := Traffic{Router: i.title, Candidate: i.candidate, Mappings: i.mappings, Window: c.age()}
	packets, size := readCounters(t, s)
	out.Packets, out.Bytes = packets-c.packets, size-c.bytes
	if out.Err = s.processes[0].failure(); out.Err == "" && s.mapped[0].IsZero() {
		out.Err = fmt.Sprintf("not reachable within %v", mapLimit)
	}
	return out
}

// check fails the test if goforward missed its target, or if a candidate had no mapping.
func (d *downtime) check(t *testing.T) {
	for _, missed := range d.Missed(goforwardName, maxDowntime) {
		t.Errorf("goforward missed its target of %v: %s", maxDowntime, missed)
	}
	for _, r := range d.Restarts {
		for _, c := range r.Recoveries {
			t.Logf("%s: %+v", r.Key, c)
			if c.Err != "" {
				t.Errorf("%s: %s had no mapping: %s", r.Key, c.Candidate, c.Err)
			}
		}
	}
	for _, x := range d.Traffic {
		t.Logf("traffic: %+v", x)
		if x.Err != "" {
			t.Errorf("traffic: %s on %s: %s", x.Candidate, x.Router, x.Err)
		}
	}
}

// The files in this directory with the last results. RESULTS.md shows both.
const (
	resultsFile  = "results.json"
	downtimeFile = "downtime.json"
)

// lastDowntime returns the section of the report about the last run of TestDowntime, or "" if
// there is none.
func lastDowntime(t *testing.T) string {
	t.Helper()
	var d Downtime
	if !readJSON(t, downtimeFile, &d) {
		return ""
	}
	return DowntimeMarkdown(&d, keepersLegend())
}

// readJSON decodes a file. It returns false if the file does not exist.
func readJSON(t *testing.T, path string, v any) bool {
	t.Helper()
	raw, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return true
}

// write prints the section, and writes the result and the whole report with the last result
// of TestBench.
func (d *downtime) write(t *testing.T) {
	section := DowntimeMarkdown(&d.Downtime, keepersLegend())
	fmt.Fprint(os.Stdout, section)
	if *flagDowntimeJSON != "" {
		raw, err := json.MarshalIndent(d.Downtime, "", " ")
		if err == nil {
			err = os.WriteFile(*flagDowntimeJSON, append(raw, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if *flagMD != "" {
		writeReport(t, section)
	}
}

// writeReport writes the report with the last result of TestBench and a section about the
// downtime.
func writeReport(t *testing.T, section string) {
	t.Helper()
	var r Result
	if !readJSON(t, resultsFile, &r) {
		t.Fatalf("no %s: run make bench first", resultsFile)
	}
	if err := os.WriteFile(*flagMD, []byte(Markdown(&r, legend())+section), 0o644); err != nil {
		t.Error(err)
	}
}

// TestReport writes the report again from the last results, without a measurement:
//
//	go test -run TestReport . -args -md RESULTS.md
func TestReport(t *testing.T) {
	if *flagMD == "" {
		t.Skip("no -md")
	}
	writeReport(t, lastDowntime(t))
}
