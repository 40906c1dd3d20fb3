package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/internal/freeport"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/reach"
)

// jsonPage is the content of docs/json.md.
type jsonPage struct {
	forms    []*jsonForm
	types    map[string]string   // type → type in JSON
	commands map[string][]string // command → its events
	values   map[string][]jsonValue
}

// jsonForm is a section about a form of one or more events, or about an object in a field.
type jsonForm struct {
	heading   string
	selectors []jsonSelector // nil: an object in a field
	fields    []jsonField
}

// jsonSelector recognizes a form of an event by fields.
type jsonSelector struct {
	event         string
	with, without []string
}

type jsonField struct{ name, typ, present string }

// jsonValue is a value of an enumeration, with the other cells of its row.
type jsonValue struct {
	name string
	rest []string
}

// readJSONPage parses docs/json.md.
func readJSONPage(t *testing.T) *jsonPage {
	t.Helper()
	text, err := os.ReadFile("../../../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	p := &jsonPage{types: map[string]string{}, commands: map[string][]string{}, values: map[string][]jsonValue{}}
	var heading, head string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			heading = strings.TrimLeft(line, "# ")
		}
		if !strings.HasPrefix(line, "|") {
			head = ""
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		switch {
		case head == "":
			if head = strings.Join(cells, "|"); head == "field|type|present|meaning" {
				p.forms = append(p.forms, &jsonForm{heading: heading, selectors: parseJSONHeading(heading)})
			}
			continue
		case strings.Trim(line, "|-") == "":
			continue
		}
		if n := strings.Count(head, "|") + 1; len(cells) != n {
			t.Fatalf("%s: the row has not %d cells: %s", heading, n, line)
		}
		switch head {
		case "field|type|present|meaning":
			form := p.forms[len(p.forms)-1]
			if slices.ContainsFunc(form.fields, func(f jsonField) bool { return f.name == cells[0] }) || cells[2] == "" || cells[3] == "" {
				t.Errorf("%s: invalid row: %s", heading, line)
			}
			form.fields = append(form.fields, jsonField{cells[0], cells[1], cells[2]})
		case "type|in JSON|value":
			p.types[cells[0]] = cells[1]
		case "command|events":
			p.commands[strings.Trim(cells[0], "`")] = strings.Split(strings.ReplaceAll(cells[1], "`", ""), ", ")
		default:
			name, _, _ := strings.Cut(head, "|")
			p.values[name] = append(p.values[name], jsonValue{cells[0], cells[1:]})
		}
	}
	return p
}

// parseJSONHeading parses headings such as "`a` with `x` and `y`, without `z`", and
// "`a` with `x`, `b`". A heading without an event has no selectors.
func parseJSONHeading(heading string) (out []jsonSelector) {
	list := "events"
	for _, token := range regexp.MustCompile("`[a-z_]+`|without|with|,").FindAllString(heading, -1) {
		name := strings.Trim(token, "`")
		switch {
		case token == ",":
			list = "events"
		case token == name:
			list = token
		case list == "events":
			out = append(out, jsonSelector{event: name})
		case list == "with":
			out[len(out)-1].with = append(out[len(out)-1].with, name)
		default:
			out[len(out)-1].without = append(out[len(out)-1].without, name)
		}
	}
	return out
}

func (p *jsonPage) form(heading string) *jsonForm {
	i := slices.IndexFunc(p.forms, func(f *jsonForm) bool { return f.heading == heading })
	if i < 0 {
		return nil
	}
	return p.forms[i]
}

// events returns the names of all events with a section.
func (p *jsonPage) events() (names []string) {
	for _, f := range p.forms {
		for _, s := range f.selectors {
			names = append(names, s.event)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// matching returns the only form of an object.
func (p *jsonPage) matching(object map[string]any) (*jsonForm, error) {
	has := func(name string) bool { _, ok := object[name]; return ok }
	lacks := func(name string) bool { return !has(name) }
	var found []*jsonForm
	for _, f := range p.forms {
		for _, s := range f.selectors {
			if s.event == object["event"] && !slices.ContainsFunc(s.with, lacks) && !slices.ContainsFunc(s.without, has) {
				found = append(found, f)
			}
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the object has %d forms, want 1", len(found))
	}
	return found[0], nil
}

// jsonRecords are the types of all objects, with the headings of their forms.
var jsonRecords = []struct {
	record   any
	headings []string
}{
	{mappingRecord{}, []string{
		"`mapped`", "`changed`, `restored`", "`lost`", "`unmapped`", "`kept`", "`dry_run`", "`entry`",
		"`error` with `protocol`, without `time`", "`error` with `protocol` and `time`",
	}},
	{hookRecord{}, []string{"`exec` with `external`, `port_file`"}},
	{execRecord{}, []string{"`exec` with `for`"}},
	{ipRecord{}, []string{"`ip`"}},
	{gatewayRecord{}, []string{"`gateway` with `used`"}},
	{watchRecord{}, []string{
		"`gateway` with `time`", "`address`", "`restarted`, `announced`", "`address_changed`", "`error` with `time`, without `protocol`",
	}},
	{errorRecord{}, []string{"`error` with `exit`"}},
	{verifiedRecord{}, []string{"`verified`, `unreachable`"}},
	{evidenceRecord{}, []string{"evidence"}},
	{probeRecord{}, []string{"`probing`", "`probed`"}},
	{reflectingRecord{}, []string{"`reflecting`"}},
	{reflectedRecord{}, []string{"`reflected`"}},
	{versionRecord{}, []string{"`version`"}},
	{jsonEndpoint{}, []string{"endpoint"}},
	{protocolRecord{}, []string{"probe"}},
	{deviceRecord{}, []string{"device"}},
}

// jsonTypes returns the types of the page that a field of a Go type can have.
func jsonTypes(t reflect.Type) []string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return []string{"address"}
	case reflect.TypeFor[backends.Protocol]():
		return []string{"transport"}
	case reflect.TypeFor[backends.Scope]():
		return []string{"scope"}
	case reflect.TypeFor[jsonEndpoint]():
		return []string{"endpoint"}
	case reflect.TypeFor[[]string]():
		return []string{"array of backend"}
	case reflect.TypeFor[[]evidenceRecord]():
		return []string{"array of evidence"}
	case reflect.TypeFor[[]deviceRecord]():
		return []string{"array of device"}
	case reflect.TypeFor[map[string]protocolRecord]():
		return []string{"map of probe"}
	}
	switch t.Kind() {
	case reflect.String:
		return []string{"string", "time", "address", "gateway", "event", "backend", "backends", "scope", "kind", "status", "verdict", "level", "outcome"}
	case reflect.Int, reflect.Int64, reflect.Uint16, reflect.Uint64:
		return []string{"integer"}
	case reflect.Float64:
		return []string{"number"}
	case reflect.Bool:
		return []string{"boolean"}
	}
	return nil
}

// TestJSONRecords checks that docs/json.md has the fields of the types of all objects, and no
// others, and that a field that can be omitted in no object is "always" present.
func TestJSONRecords(t *testing.T) {
	t.Parallel()
	p := readJSONPage(t)
	var covered []string
	for _, r := range jsonRecords {
		covered = append(covered, r.headings...)
		typ := reflect.TypeOf(r.record)
		fields, omittable, documented := map[string]reflect.Type{}, map[string]bool{}, map[string]bool{}
		for f := range typ.Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" || !f.IsExported() {
				t.Errorf("%v.%s has no name in JSON", typ, f.Name)
			}
			fields[name], omittable[name] = f.Type, options != ""
		}
		for _, heading := range r.headings {
			form := p.form(heading)
			if form == nil {
				t.Errorf("%v: no section %s", typ, heading)
				continue
			}
			for _, f := range form.fields {
				documented[f.name] = true
				switch goType, ok := fields[f.name]; {
				case !ok:
					t.Errorf("%s: %v has no field %s", heading, typ, f.name)
				case !slices.Contains(jsonTypes(goType), f.typ):
					t.Errorf("%s: the type of %s is %s, want one of %q", heading, f.name, f.typ, jsonTypes(goType))
				case !omittable[f.name] && f.present != "always":
					t.Errorf("%s: %s is never omitted, but not always present", heading, f.name)
				}
			}
			for name := range fields {
				if !omittable[name] && !slices.ContainsFunc(form.fields, func(f jsonField) bool { return f.name == name }) {
					t.Errorf("%s: the field %s is not documented", heading, name)
				}
			}
		}
		for name := range fields {
			if !documented[name] {
				t.Errorf("%v: no section has the field %s", typ, name)
			}
		}
	}
	for _, f := range p.forms {
		if n := len(slices.DeleteFunc(slices.Clone(covered), func(s string) bool { return s != f.heading })); n != 1 {
			t.Errorf("%s: the section is of %d types in jsonRecords", f.heading, n)
		}
	}
}

// TestJSONValues checks the tables of the enumerations, types and commands of docs/json.md.
func TestJSONValues(t *testing.T) {
	t.Parallel()
	p := readJSONPage(t)
	want := map[string][]string{"backend": {gateway.Direct}, "status": {"yes", "no", "refused", "silent"}}
	for _, o := range []dialback.Outcome{dialback.Echoed, dialback.Connected, dialback.Sent, dialback.Refused, dialback.TimedOut} {
		want["outcome"] = append(want["outcome"], string(o))
	}
	for _, b := range protocols {
		want["backend"] = append(want["backend"], b.name)
	}
	for s := backends.Scope(0); !strings.HasPrefix(s.String(), "scope "); s++ {
		want["scope"] = append(want["scope"], s.String())
	}
	for v := reach.Verdict(0); !strings.HasPrefix(v.String(), "verdict "); v++ {
		want["verdict"] = append(want["verdict"], v.String())
	}
	for l := reach.Level(0); !strings.HasPrefix(l.String(), "level "); l++ {
		want["level"] = append(want["level"], l.String())
	}
	for _, k := range slices.Concat(errorKinds, []errorKind{
		classify(usagef("")), classify(errInterrupted), classify(errNotUnmapped), classify(errors.New("other")),
	}) {
		if text := k.name + " " + strconv.Itoa(k.code); !slices.Contains(want["kind"], text) {
			want["kind"] = append(want["kind"], text)
		}
	}
	got := map[string][]string{}
	for name, values := range p.values {
		for _, v := range values {
			if name == "kind" {
				v.name += " " + v.rest[0]
			}
			got[name] = append(got[name], v.name)
		}
	}
	for _, lists := range []map[string][]string{got, want} {
		for _, list := range lists {
			slices.Sort(list)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got values\n%q, want\n%q", got, want)
	}
	var listed []string
	for _, events := range p.commands {
		listed = append(listed, events...)
	}
	slices.Sort(listed)
	if listed = slices.Compact(listed); !slices.Equal(listed, p.events()) {
		t.Errorf("events of commands:\n%q, sections:\n%q", listed, p.events())
	}
	used := map[string]bool{}
	for _, f := range p.forms {
		for _, field := range f.fields {
			used[strings.TrimPrefix(strings.TrimPrefix(field.typ, "array of "), "map of ")] = true
		}
	}
	for name := range p.types {
		if !used[name] {
			t.Errorf("no field has the type %s", name)
		}
	}
	for name := range used {
		if p.types[name] == "" {
			t.Errorf("the type %s is not documented", name)
		}
	}
}

// jsonChecker checks objects against docs/json.md, and records which fields and values occurred.
type jsonChecker struct {
	page *jsonPage
	mu   sync.Mutex
	seen map[string]bool // event, form and field, or a value of an enumeration
}

// checkLine checks a line that a command printed, and returns the object.
func (c *jsonChecker) checkLine(command, line string) (map[string]any, error) {
	d := json.NewDecoder(strings.NewReader(line))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		return nil, err
	}
	if rest, _ := io.ReadAll(d.Buffered()); string(rest) != "\n" || strings.Count(line, "\n") != 1 || !utf8.ValidString(line) {
		return nil, errors.New("not one object per line, in UTF-8")
	}
	form, err := c.page.matching(object)
	if err != nil {
		return nil, err
	}
	event := object["event"].(string) //nolint:forcetypeassert // matching compared it
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.page.commands[command], event) {
		return nil, fmt.Errorf("%s does not print %s", command, event)
	}
	c.seen["event "+event] = true
	return object, c.checkFields(form, object)
}

// checkFields checks that an object has all fields that are always present, and no
// undocumented field. The caller holds the lock.
func (c *jsonChecker) checkFields(form *jsonForm, object map[string]any) error {
	known := map[string]bool{}
	for _, f := range form.fields {
		known[f.name] = true
		v, ok := object[f.name]
		if !ok {
			if f.present == "always" {
				return fmt.Errorf("%s: no field %s", form.heading, f.name)
			}
			continue
		}
		c.seen[form.heading+": "+f.name] = true
		if err := c.checkValue(f.typ, v); err != nil {
			return fmt.Errorf("%s: %s: %w", form.heading, f.name, err)
		}
	}
	for name := range object {
		if !known[name] {
			return fmt.Errorf("%s: undocumented field %s", form.heading, name)
		}
	}
	return nil
}

// checkValue checks a value against its type. The caller holds the lock.
func (c *jsonChecker) checkValue(typ string, v any) error {
	if element, ok := strings.CutPrefix(typ, "array of "); ok {
		list, _ := v.([]any)
		return c.checkElements(element, slices.All(list), len(list))
	}
	if element, ok := strings.CutPrefix(typ, "map of "); ok {
		object, _ := v.(map[string]any)
		for name := range object {
			if err := c.checkText("backend", name); err != nil {
				return err
			}
		}
		return c.checkMembers(element, object)
	}
	ok, text := false, ""
	switch c.page.types[typ] {
	case "string":
		if text, ok = v.(string); ok {
			return c.checkText(typ, text)
		}
	case "number":
		var n json.Number
		if n, ok = v.(json.Number); ok && typ == "integer" {
			_, err := n.Int64()
			return err
		}
	case "boolean":
		_, ok = v.(bool)
	case "object":
		var object map[string]any
		if object, ok = v.(map[string]any); ok {
			return c.checkFields(c.page.form(typ), object)
		}
	}
	if !ok {
		return fmt.Errorf("%v (%T) is not a %s", v, v, typ)
	}
	return nil
}

func (c *jsonChecker) checkElements(typ string, elements func(func(int, any) bool), n int) error {
	if n == 0 {
		return errors.New("not an array with elements")
	}
	for _, v := range elements {
		if err := c.checkValue(typ, v); err != nil {
			return err
		}
	}
	return nil
}

func (c *jsonChecker) checkMembers(typ string, members map[string]any) error {
	if len(members) == 0 {
		return errors.New("not an object with members")
	}
	for _, v := range members {
		if err := c.checkValue(typ, v); err != nil {
			return err
		}
	}
	return nil
}

// checkText checks a text against its type. The caller holds the lock.
func (c *jsonChecker) checkText(typ, text string) error {
	var err error
	switch typ {
	case "string":
	case "time":
		if _, err = time.Parse("2006-01-02T15:04:05Z", text); err == nil && len(text) != len("2006-01-02T15:04:05Z") {
			err = fmt.Errorf("%q has a fraction", text)
		}
	case "address":
		if text != "" {
			_, err = netip.ParseAddr(text)
		}
	case "gateway":
		if _, err = netip.ParseAddr(text); err != nil && text != "" {
			_, err = netip.ParseAddrPort(text)
		} else {
			err = nil
		}
	case "transport":
		_, err = backends.ParseProtocol(text)
	case "event":
		if !slices.Contains(c.page.events(), text) {
			err = fmt.Errorf("unknown event %q", text)
		}
	case "backends":
		for name := range strings.SplitSeq(text, ",") {
			err = errors.Join(err, c.checkEnumeration("backend", name))
		}
	case "backend":
		if text != "" {
			err = c.checkEnumeration(typ, text)
		}
	default:
		err = c.checkEnumeration(typ, text)
	}
	return err
}

func (c *jsonChecker) checkEnumeration(typ, text string) error {
	c.seen[typ+" "+text] = true
	if !slices.ContainsFunc(c.page.values[typ], func(v jsonValue) bool { return v.name == text }) {
		return fmt.Errorf("unknown %s %q", typ, text)
	}
	return nil
}

// checkSeen checks that every event, field of a form and status occurred.
func (c *jsonChecker) checkSeen(t *testing.T) {
	t.Helper()
	var want []string
	for _, event := range c.page.events() {
		want = append(want, "event "+event)
	}
	for _, form := range c.page.forms {
		for _, f := range form.fields {
			want = append(want, form.heading+": "+f.name)
		}
	}
	for _, v := range c.page.values["status"] {
		want = append(want, "status "+v.name)
	}
	for _, s := range want {
		if !c.seen[s] {
			t.Errorf("did not occur: %s", s)
		}
	}
}

// run runs a command line and checks its output. command is its row in docs/json.md.
func (c *jsonChecker) run(t *testing.T, command string, wantCode int, change func(*app), args ...string) {
	t.Helper()
	got := run(t, change, append(args, "--json")...)
	if got.code != wantCode {
		t.Errorf("%q: exit code %d, want %d: %s", args, got.code, wantCode, got.stderr)
	}
	last := map[string]any{}
	for line := range strings.Lines(got.stdout) {
		object, err := c.checkLine(command, line)
		if err != nil {
			t.Errorf("%q: %v: %s", args, err, line)
		}
		last = object
	}
	isVerdict := (last["event"] == "verified" || last["event"] == "probed") && (wantCode == exitUnreachable || wantCode == exitNotProven)
	if _, failed := last["exit"]; failed != (wantCode != exitDone && !isVerdict) || got.stdout == "" {
		t.Errorf("%q: exit code %d, but the output is\n%s", args, got.code, got.stdout)
	}
}

// jsonSession is a command that runs until it is interrupted.
type jsonSession struct {
	t         *testing.T
	checker   *jsonChecker
	command   string
	lines     *bufio.Reader
	interrupt context.CancelFunc
	code      chan int
	stderr    bytes.Buffer // read it only after the command has ended
}

func (c *jsonChecker) start(t *testing.T, command string, change func(*app), args ...string) *jsonSession {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	in, out := io.Pipe()
	s := &jsonSession{t: t, checker: c, command: command, lines: bufio.NewReader(in), interrupt: interrupt, code: make(chan int, 1)}
	a := newApp(out, &s.stderr)
	change(a)
	go func() {
		code := a.run(ctx, append(args, "--json"))
		_ = out.Close()
		s.code <- code
	}()
	t.Cleanup(func() {
		interrupt()
		_ = in.Close()
	})
	return s
}

// next returns the next object, or nil at the end.
func (s *jsonSession) next() map[string]any {
	s.t.Helper()
	line, err := s.lines.ReadString('\n')
	if err != nil {
		return nil
	}
	object, err := s.checker.checkLine(s.command, line)
	if err != nil {
		s.t.Fatalf("%v: %s", err, line)
	}
	return object
}

// await reads objects until there is one of each event. An event with a field is "event field".
func (s *jsonSession) await(events ...string) {
	s.t.Helper()
	for missing := events; len(missing) > 0; {
		object := s.next()
		if object == nil {
			s.t.Fatalf("no %q; exit code %d: %s", missing, <-s.code, &s.stderr)
		}
		missing = slices.DeleteFunc(missing, func(text string) bool {
			event, field, _ := strings.Cut(text, " ")
			_, has := object[field]
			return object["event"] == event && (field == "" || has)
		})
	}
}

// finish interrupts the command and checks the rest of its output.
func (s *jsonSession) finish() {
	s.t.Helper()
	s.interrupt()
	for s.next() != nil {
	}
	if code := <-s.code; code != exitDone {
		s.t.Errorf("exit code %d: %s", code, &s.stderr)
	}
}

// TestJSON runs commands that print every event, and compares each object with docs/json.md.
func TestJSON(t *testing.T) {
	t.Parallel()
	c := &jsonChecker{page: readJSONPage(t), seen: map[string]bool{}}
	t.Run("commands", func(t *testing.T) {
		for name, commands := range map[string]func(*testing.T, *jsonChecker){
			"map": runJSONMap, "verify": runJSONVerify, "table": runJSONTable, "gateways": runJSONGateways, "probe": runJSONProbe, "version": runJSONVersion, "reflect": runJSONReflect,
			"hold": runJSONHold, "hold name": runJSONHoldName, "watch": runJSONWatch, "watch announced": runJSONWatchAnnounced,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				commands(t, c)
			})
		}
	})
	c.checkSeen(t)
}

const jsonPeer = "198.51.100.7"

func runJSONMap(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	c.run(t, "map", exitDone, nil, append(at, "map", "8080/both")...)
	c.run(t, "map", exitDone, nil, append(at, "map", "8081", "--from", jsonPeer, "--backend", "pcp")...)
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.0.2.9:80"), External: netip.AddrPortFrom(gw.External(), 8082),
	}); err != nil {
		t.Fatal(err)
	}
	c.run(t, "map", exitConflict, nil, append(at, "map", "8082", "8083/udp", "--exact", "--backend", "natpmp")...)
	c.run(t, "map", exitUsage, nil, append(at, "map", "99999")...)
	c.run(t, "map --dry-run", exitDone, nil, append(at, "map", "--dry-run", "80:8080/both", "9000-9001")...)
	c.run(t, "unmap --dry-run", exitDone, nil, append(at, "unmap", "--dry-run", "8080/both")...)
	c.run(t, "unmap", exitDone, nil, append(at, "unmap", "8080/both")...)
	c.run(t, "unmap", exitOther, nil, append(at, "unmap", "8080/tcp", "8081/sctp", "--backend", "natpmp")...)
	c.run(t, "unmap", exitDone, nil, append(at, "unmap", "8081", "--from", jsonPeer, "--backend", "pcp")...)
	c.run(t, "unmap", exitDone, nil, append(at, "unmap", "--all", "--backend", "natpmp")...)
	c.run(t, "ip", exitDone, nil, append(at, "ip")...)
	gw.SetExternal(netip.MustParseAddr("100.64.0.1"))
	c.run(t, "ip", exitDone, nil, append(at, "ip")...)
	c.run(t, "list", exitOther, nil, append(at, "list", "--backend", "natpmp")...)
}

// unusedPort returns a port on which no program listens.
func unusedPort(t *testing.T) string {
	t.Helper()
	at, err := freeport.UDP()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(at.Port()))
}

// runJSONVerify runs verify with simulated measurements, and map --hold with a real one: no
// program listens.
func runJSONVerify(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}, External: netip.MustParseAddr("127.0.0.1")})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0", "--backend", "natpmp"}
	path := reach.Evidence{
		Method: "path:wwan0", Protocol: backends.TCP, External: netip.MustParseAddrPort("127.0.0.1:8081"),
		Verdict: reach.Reachable, Level: reach.LevelInternet, At: time.Now(), RTT: 1500 * time.Microsecond, Detail: "a connection\narrived",
		From: netip.MustParseAddrPort("198.51.100.7:40122"), To: netip.MustParseAddrPort("127.0.0.1:8081"),
	}
	lan := reach.Evidence{Method: "router", Protocol: backends.TCP, External: path.External, Level: reach.LevelLAN, Inferred: true, At: time.Now()}
	udp := reach.Evidence{Method: "router", Protocol: backends.UDP, External: path.External, At: time.Now()}
	other := path
	other.External = netip.MustParseAddrPort("203.0.113.9:8084")
	measure := measuring(map[uint16]reach.Result{
		8084: {Verdict: reach.Reachable, Proven: reach.LevelInternet, Reason: "reachable", At: time.Now(), External: other.External, Evidence: []reach.Evidence{other}},
		8081: {Verdict: reach.Reachable, Proven: reach.LevelInternet, Reason: "reachable", At: time.Now(), Evidence: []reach.Evidence{lan, path, udp}},
		8082: {Verdict: reach.Unreachable, Reason: "not reachable", At: time.Now()},
	})
	c.run(t, "verify", exitDone, measure, append(at, "verify", "8081")...)
	c.run(t, "verify", exitDone, measure, append(at, "verify", "8084")...)
	c.run(t, "verify", exitUnreachable, measure, append(at, "verify", "8082/both")...)
	c.run(t, "verify", exitNotProven, measure, append(at, "verify", "8083/udp")...)
	c.run(t, "verify", exitUsage, measure, append(at, "verify", "8083/sctp")...)
	c.run(t, "map", exitUnreachable, measure, append(at, "map", "8082", "--verify")...)
	c.run(t, "verify", exitUnreachable, nil, append(at, "verify", unusedPort(t))...)
	s := c.start(t, "map --hold", func(*app) {}, append(at, "map", unusedPort(t), "--hold", "--verify", "--every", "10")...)
	s.await("mapped", "unreachable evidence")
	s.finish()
}

func runJSONTable(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{Protocols: []string{"upnp"}, Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}})
	at := []string{"-g", gw.Addr().String(), "--igd-url", gw.UPnP().DescriptionURL(), "--notify", "127.0.0.1:0"}
	c.run(t, "map", exitDone, nil, append(at, "map", "8080", "--from", jsonPeer, "--description", "a\x1b\u202eb")...)
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.UDP, Internal: netip.MustParseAddrPort("192.0.2.9:80"), External: netip.AddrPortFrom(gw.External(), 8082), Disabled: true,
	}); err != nil {
		t.Fatal(err)
	}
	c.run(t, "list", exitDone, nil, append(at, "list")...)
	c.run(t, "list", exitDone, nil, append(at, "list", "--ours")...)
	c.run(t, "unmap --dry-run", exitDone, nil, append(at, "unmap", "--all", "--dry-run")...)
	c.run(t, "unmap", exitDone, nil, append(at, "unmap", "--all")...)
	c.run(t, "unmap", exitDone, nil, append(at, "unmap", "8082:80/udp", "--foreign")...)
}

func runJSONGateways(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{})
	c.run(t, "gateways", exitDone, nil, "gateways", "-g", gw.Addr().String(), "--igd-url", gw.UPnP().DescriptionURL(), "--notify", "127.0.0.1:0")
	other := router(t, gatewaytest.Config{Protocols: []string{"pcp"}})
	c.run(t, "gateways", exitDone, nil, "gateways", "-g", other.Addr().String(), "--backend", "natpmp,pcp")
	gw.Inject(gatewaytest.Fault{Result: 2, Match: func(q gatewaytest.Request) bool { return q.Service == "natpmp" }})
	gw.Inject(gatewaytest.Fault{Drop: true, Match: func(q gatewaytest.Request) bool { return q.Service == "pcp" }})
	c.run(t, "gateways", exitDone, nil, "gateways", "-g", gw.Addr().String(), "--backend", "natpmp,pcp", "--timeout", "1")
	c.run(t, "gateways", exitNoGateway, hosts(nil, nil, nil), "gateways")
}

func runJSONProbe(t *testing.T, c *jsonChecker) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c.run(t, "probe", exitDone, nil, "probe", ln.Addr().String())
	c.run(t, "probe", exitUnreachable, nil, "probe", "127.0.0.1:"+unusedPort(t))
	c.run(t, "probe", exitUsage, nil, "probe", "127.0.0.1")
}

// runJSONVersion also prints the version of a program with a revision, which a test has not.
func runJSONVersion(t *testing.T, c *jsonChecker) {
	c.run(t, "version", exitDone, nil, "version")
	var stdout, stderr bytes.Buffer
	newApp(&stdout, &stderr).printJSON(versionOf(&debug.BuildInfo{Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "89174f2b3c4d5e6f708192a3b4c5d6e7f8091a2b"}, {Key: "vcs.time", Value: "2026-11-27T10:20:30Z"}, {Key: "vcs.modified", Value: "true"},
	}}))
	if _, err := c.checkLine("version", stdout.String()); err != nil {
		t.Error(err)
	}
}

func runJSONReflect(t *testing.T, c *jsonChecker) {
	s := c.start(t, "reflect", func(*app) {}, "reflect", "--listen", "127.0.0.1:0")
	s.await("reflecting")
	s.interrupt()
	s.await("reflected")
	s.finish()
	c.run(t, "reflect", exitUsage, nil, "reflect", "--cert", "only-one")
}

// runJSONHold runs map --hold from a failed attempt to the deletion.
func runJSONHold(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{Protocols: []string{"pcp"}})
	remove := gw.Inject(gatewaytest.Fault{Drop: true})
	dir := filepath.Join(t.TempDir(), "missing")
	s := c.start(t, "map --hold", func(a *app) {
		a.keptBy = func(m backends.Mapping) string {
			if m.Protocol == backends.UDP {
				return "process 1 keeps it alive"
			}
			return ""
		}
	}, "map", "8080/both", "--hold", "--wait", "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "pcp",
		"--timeout", "2", "--from", jsonPeer, "--exec", "no-such-command-of-goforward", "--port-file", filepath.Join(dir, "port"))
	s.await("error next_try")
	remove()
	s.await("mapped", "exec error", "port_file error")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Error(err)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.9"))
	s.await("changed previous", "port_file")
	remove = gw.Inject(gatewaytest.Fault{Result: 8, Match: func(q gatewaytest.Request) bool { return q.Op == "map" }})
	gw.Restart(gatewaytest.RestartOptions{})
	s.await("lost next_try")
	s.await("error external")
	remove()
	s.await("restored")
	s.finish()
}

// runJSONHoldName runs map --hold with a name of the gateway that has no address at first.
func runJSONHoldName(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	failed := false
	s := c.start(t, "map --hold", func(a *app) {
		a.lookupHost = func(context.Context, string) ([]netip.Addr, error) {
			if !failed {
				failed = true
				return nil, errors.New("no such host")
			}
			return []netip.Addr{gw.Addr().Addr()}, nil
		}
	}, "map", "8080", "--hold", "--wait", "-g", "router.test:"+strconv.Itoa(int(gw.Addr().Port())), "--announce", "127.0.0.1:0")
	s.await("error next_try", "mapped")
	s.finish()
}

// jsonWatch starts watch on a simulated network.
func jsonWatch(t *testing.T, c *jsonChecker, gw *gatewaytest.Gateway, network *watchTest, args ...string) *jsonSession {
	t.Helper()
	network.changed = make(chan struct{}, 1)
	return c.start(t, "watch", func(a *app) {
		a.pollInterval, a.currentRoute, a.watchNetwork = time.Hour, network.currentRoute, network.watchNetwork
	}, append([]string{"watch", "--backend", "natpmp", "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String()}, args...)...)
}

func runJSONWatch(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{})
	home := route{gateway: gw.Addr(), iface: "eth0", local: netip.MustParseAddr("127.0.0.1")}
	network := &watchTest{route: route{reason: "no route"}}
	s := jsonWatch(t, c, gw, network, "--exec", "no-such-command-of-goforward")
	s.await("error next_try")
	network.setRoute(home)
	s.await("gateway interface", "gateway protocols", "address ip", "exec error")
	gw.Restart(gatewaytest.RestartOptions{})
	s.await("restarted")
	gw.SetExternal(netip.MustParseAddr("45.45.45.9"))
	s.await("address_changed")
	network.setRoute(route{reason: "no route"})
	s.await("gateway reason")
	s.finish()
}

func runJSONWatchAnnounced(t *testing.T, c *jsonChecker) {
	gw := router(t, gatewaytest.Config{})
	s := jsonWatch(t, c, gw, &watchTest{route: route{gateway: gw.Addr()}})
	s.await("address")
	gw.Restart(gatewaytest.RestartOptions{KeepEpoch: true})
	s.await("announced")
	s.finish()
}
