package cli

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natforward/goforward/internal/lazyregexp"
)

// mistakes are the usual mistakes in a command line, and the hint for each. The first one that
// applies counts.
var mistakes = []func(*commandLine) string{
	(*commandLine).missingMap, (*commandLine).nearCommand,
	(*commandLine).singleDash, (*commandLine).portFlag, (*commandLine).nearFlag,
	(*commandLine).viaAsPort, (*commandLine).protocolFirst, (*commandLine).nearProtocol, (*commandLine).severalPorts, (*commandLine).halfPair, (*commandLine).portRange, (*commandLine).lifetimeZero,
}

// commandLine is an invalid command line.
type commandLine struct {
	root, cmd *cobra.Command
	args      []string // without the name of the command
	text      string   // of the error
}

// explainUsage adds what the user most likely meant to a usage error.
func explainUsage(root *cobra.Command, args []string, usage *usageError) {
	cmd, rest, err := root.Find(args)
	if err != nil {
		cmd, rest = root, args
	}
	if usage.command = cmd.CommandPath(); cmd.Name() == "help" {
		usage.command = root.CommandPath()
	}
	c := &commandLine{root: root, cmd: cmd, args: rest, text: usage.text}
	usage.text, _, _ = strings.Cut(usage.text, "\n") // cobra adds its own suggestions
	if c.unknownCommand() != "" && cmd != root && !cmd.HasSubCommands() && cmd.Name() != "help" {
		usage.text = cmd.Name() + " takes no arguments"
		return
	}
	for _, find := range mistakes {
		if hint := find(c); usage.advice == "" {
			usage.advice = hint
		}
	}
}

// argument returns the first argument that is neither a flag nor the value of a flag.
func (c *commandLine) argument() string {
	skip := false
	for _, arg := range c.args {
		switch {
		case skip:
			skip = false
		case strings.HasPrefix(arg, "-"):
			skip = c.takesNext(arg)
		default:
			return arg
		}
	}
	return ""
}

// takesNext reports whether the argument after a flag is its value.
func (c *commandLine) takesNext(arg string) bool {
	f := c.cmd.Flags().Lookup(strings.TrimPrefix(arg, "--"))
	if len(arg) == 2 && arg != "--" {
		f = c.cmd.Flags().ShorthandLookup(arg[1:])
	}
	return f != nil && f.NoOptDefVal == ""
}

var unknownCommand = lazyregexp.New(`^(?:unknown command|no command or help topic) ("(?:[^"\\]|\\.)*")`)

// unknownCommand returns the name of the unknown command that the error is about, or "".
func (c *commandLine) unknownCommand() string {
	m := unknownCommand().FindStringSubmatch(c.text)
	if m == nil {
		return ""
	}
	name, _ := strconv.Unquote(m[1])
	return name
}

// missingMap recognizes ports without a command.
func (c *commandLine) missingMap() string {
	name := c.unknownCommand()
	if _, err := parsePortArg(name); err != nil {
		return ""
	}
	return "goforward map " + name
}

// nearCommand recognizes a misspelled command.
func (c *commandLine) nearCommand() string {
	var names []string
	for _, cmd := range c.root.Commands() {
		if !cmd.Hidden {
			names = append(names, cmd.Name())
		}
	}
	if near := nearest(c.unknownCommand(), names); near != "" {
		return "did you mean goforward " + near + "?"
	}
	if near := nearest(c.unknownCommand(), topicNames()); near != "" {
		return "did you mean goforward help " + near + "?"
	}
	return ""
}

// flags returns the names of the flags of the command.
func (c *commandLine) flags() (names []string) {
	for _, set := range []*pflag.FlagSet{c.cmd.NonInheritedFlags(), c.cmd.InheritedFlags()} {
		set.VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
	}
	return names
}

// singleDash recognizes a long flag with one dash, and a negative number.
func (c *commandLine) singleDash() string {
	if !strings.HasPrefix(c.text, "unknown shorthand flag: ") {
		return ""
	}
	for _, arg := range c.args {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		switch _, err := strconv.Atoi(arg); {
		case err == nil && strings.HasPrefix(arg, "-"):
			return portRangeText
		case "-"+name != arg && !strings.HasPrefix(arg, "-"+name+"="), strings.HasPrefix(name, "-"), len(name) < 2:
		case slices.Contains(c.flags(), name):
			return "did you mean --" + name + "?"
		}
	}
	return ""
}

var unknownFlag = lazyregexp.New(`^unknown flag: --(\S+)`)

// portFlag recognizes flags for what is an argument, or the value of another flag.
func (c *commandLine) portFlag() string {
	m := unknownFlag().FindStringSubmatch(c.text)
	if m == nil || c.cmd.Name() != "map" && c.cmd.Name() != "unmap" {
		return ""
	}
	switch m[1] {
	case "port", "ports", "internal", "external", "internal-port", "external-port":
		port := cmp.Or(c.argument(), "8080")
		if _, err := parsePortArg(port); err != nil {
			port = "8080"
		}
		return fmt.Sprintf("ports need no flag: goforward %s %s", c.cmd.Name(), port)
	case "tcp", "both", "sctp":
		return "did you mean -p " + m[1] + "?"
	}
	return ""
}

// nearFlag recognizes a misspelled flag.
func (c *commandLine) nearFlag() string {
	if m := unknownFlag().FindStringSubmatch(c.text); m != nil {
		if near := nearest(m[1], c.flags()); near != "" {
			return "did you mean --" + near + "?"
		}
	}
	return ""
}

// isPort reports whether the error may concern the ports of map or unmap.
func (c *commandLine) isPort() bool {
	return (c.cmd.Name() == "map" || c.cmd.Name() == "unmap") && strings.Contains(c.text, "port")
}

// viaAsPort recognizes a way to connect from the internet that is not the value of its flag, as in
// map 8080 --verify ssh:vps.
func (c *commandLine) viaAsPort() string {
	flag := ""
	switch {
	case c.cmd.Flags().Lookup("via") != nil:
		flag = "--via "
	case c.cmd.Flags().Lookup("verify") != nil:
		flag = "--verify="
	default:
		return ""
	}
	for i, arg := range c.args {
		if strings.HasPrefix(arg, "-") || i > 0 && strings.HasPrefix(c.args[i-1], "-") && c.takesNext(c.args[i-1]) {
			continue
		}
		if _, err := parsePortArg(arg); err == nil {
			continue
		}
		if _, err := parseVia(arg); err == nil {
			return "did you mean " + flag + arg + "?"
		}
	}
	return ""
}

// protocolFirst recognizes tcp/8080.
func (c *commandLine) protocolFirst() string {
	name, port, both := strings.Cut(c.argument(), "/")
	if _, err := parsePortArg(port + "/" + name); both && err == nil && (c.isPort() || strings.Contains(c.text, "protocol")) {
		return fmt.Sprintf("did you mean goforward %s %s/%s?", c.cmd.Name(), port, name)
	}
	return ""
}

var unknownProtocol = lazyregexp.New(`no protocol "([a-z]+)": `)

// nearProtocol recognizes a misspelled protocol.
func (c *commandLine) nearProtocol() string {
	if m := unknownProtocol().FindStringSubmatch(c.text); m != nil {
		if near := nearest(m[1], []string{"tcp", "udp", "both", "sctp", "dccp", "udplite"}); near != "" {
			return "did you mean " + near + "?"
		}
	}
	return ""
}

// severalPorts recognizes a list of ports with commas.
func (c *commandLine) severalPorts() string {
	list := strings.ReplaceAll(c.argument(), ",", " ")
	if _, err := parsePortArgs(strings.Fields(list)); err != nil || list == c.argument() || !c.isPort() {
		return ""
	}
	if _, pair, _ := parsePorts(strings.Fields(list)); pair { // these would be an external and an internal port
		list += "/tcp"
	}
	return fmt.Sprintf("separate ports by spaces: goforward %s %s", c.cmd.Name(), list)
}

// halfPair recognizes 8080: and :8080.
func (c *commandLine) halfPair() string {
	arg := c.argument()
	port := strings.Replace(arg, ":", "", 1)
	if _, err := parsePortArg(port); c.isPort() && port != arg && err == nil && (strings.HasPrefix(arg, ":") || !strings.ContainsAny(arg[strings.Index(arg, ":"):], "0123456789")) {
		return fmt.Sprintf("did you mean goforward %s %s?", c.cmd.Name(), port)
	}
	return ""
}

const portRangeText = "ports are numbers from 1 to 65535"

// portRange recognizes port 0, and numbers that are too large.
func (c *commandLine) portRange() string {
	number, _, _ := strings.Cut(c.argument(), "/")
	_, internal, both := strings.Cut(number, ":")
	if !both {
		internal = number
	}
	n, err := strconv.Atoi(internal)
	switch {
	case !c.isPort() || err != nil:
		return ""
	case n == 0 && c.cmd.Name() == "map":
		return "name a port from 1 to 65535, or none: goforward map uses one that is free"
	}
	if n >= 1 && n <= math.MaxUint16 {
		return ""
	}
	return portRangeText
}

// lifetimeZero recognizes a lifetime of 0, which deletes a mapping on the wire.
func (c *commandLine) lifetimeZero() string {
	if !strings.Contains(c.text, "to delete a mapping, use goforward unmap") {
		return ""
	}
	if _, err := parsePortArg(c.argument()); err != nil {
		return "goforward unmap deletes a mapping"
	}
	return "goforward unmap " + c.argument()
}

// nearest returns the name that a misspelled name most likely means, or "".
func nearest(name string, names []string) string {
	best, found := 3, ""
	if len(name) > 32 {
		return ""
	}
	for _, n := range names {
		switch d := editDistance(name, n); {
		case d < best && d < len(n)-1:
			best, found = d, n
		case len(name) > 2 && strings.HasPrefix(n, name) && found == "":
			found = n
		}
	}
	return found
}

// editDistance returns the number of insertions, deletions, replacements and swaps of
// neighbors that make b of a.
func editDistance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
