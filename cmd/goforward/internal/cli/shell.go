package cli

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/natforward/goforward/internal/lazyregexp"
)

// shellWarning returns a warning if the command line text, as passed to --exec, has syntax that
// only a shell understands, such as a variable or a pipe. The warning has the form that runs a
// shell, quoted for the shell of the user. If the command line has no such syntax, or starts a
// shell, shellWarning returns "". The text must be valid for splitCommand.
func shellWarning(text string) string {
	if runtime.GOOS == "windows" {
		return findShellSyntax(text, windowsShellToken).warning("^&", windowsShellForm)
	}
	return findShellSyntax(text, posixShellToken).warning(`\&`, posixShellForm)
}

// shellSyntax is the syntax of a shell in a command line.
type shellSyntax struct {
	tokens []string // without repetition
	words  []string // the words before the word with the first token
	parts  []string // the command line, split at each & that separates no commands
}

// findShellSyntax searches a command line for syntax of a shell. token returns the syntax that
// begins at position i of the text, or "". It is not called for characters that are between
// single quotes or escaped.
func findShellSyntax(text string, token func(text []rune, i int, quoted bool) string) shellSyntax {
	var (
		found    shellSyntax
		splitter commandSplitter
		operator int // index after the last operator
		part     int // index of the first character of the last part
	)
	runes := []rune(text)
	for i, r := range runes {
		if !splitter.escaped && splitter.quote != '\'' {
			switch t := token(runes, i, splitter.quote != 0); {
			case t == "", i < operator:
			case t == "&" && isInWord(runes, i): // as in a URL
				found.parts, part = append(found.parts, string(runes[part:i])), i+1
			default:
				if isOperator(r) {
					operator = i + len(t)
				}
				found.add(t, splitter.words)
			}
		}
		splitter.add(r)
	}
	found.parts = append(found.parts, string(runes[part:]))
	return found
}

// add adds a token. words are the words before its word.
func (s *shellSyntax) add(token string, words []string) {
	if len(s.tokens) == 0 {
		s.words = slices.Clone(words)
	}
	if !slices.Contains(s.tokens, token) {
		s.tokens = append(s.tokens, token)
	}
}

// warning returns the warning. ampersand is the escaped form of & in the shell, and form
// returns the value of --exec that runs a command line in the shell, quoted for the user's
// shell.
func (s shellSyntax) warning(ampersand string, form func(string) string) string {
	if len(s.tokens) == 0 || startsShell(s.words) {
		return ""
	}
	verb := "are"
	if len(s.tokens) == 1 {
		verb = "is"
	}
	script := strings.Join(s.parts, ampersand)
	advice := "--exec " + form(script)
	if !isPrintable(script) { // the message would not have it unchanged
		advice = "put the command into a script"
	}
	return fmt.Sprintf("--exec: no shell reads the command, so %s %s passed literally; to use a shell: %s", joinNames(s.tokens), verb, advice)
}

func isPrintable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError })
}

func isOperator(r rune) bool { return strings.ContainsRune("|&;<>", r) }

// operatorAt returns the operators at position i of the text.
func operatorAt(text []rune, i int) string {
	end := i
	for end < len(text) && isOperator(text[end]) {
		end++
	}
	return string(text[i:end])
}

// isInWord reports whether there is a character of a word before and after position i.
func isInWord(text []rune, i int) bool {
	return i > 0 && i+1 < len(text) && !unicode.IsSpace(text[i-1]) && !unicode.IsSpace(text[i+1])
}

var (
	posixVariable   = lazyregexp.New(`^\$([A-Za-z_][A-Za-z0-9_]*|\{[^}]*\})`)
	posixParameter  = lazyregexp.New(`^\$[0-9@*#?$!-]`)
	windowsVariable = lazyregexp.New(`^%[A-Za-z_][A-Za-z0-9_]*%`)
)

// posixShellToken is the token function of sh. Between double quotes, only variables and
// command substitutions are syntax of the shell; parameters such as $1 are not counted there,
// because they have a meaning in programs for awk.
func posixShellToken(text []rune, i int, quoted bool) string {
	rest := string(text[i:])
	switch r := text[i]; {
	case r == '$' && strings.HasPrefix(rest, "$("):
		return "$(…)"
	case r == '$' && posixVariable().MatchString(rest):
		return posixVariable().FindString(rest)
	case r == '`':
		return "`"
	case quoted:
		return ""
	case r == '$':
		return posixParameter().FindString(rest)
	case isOperator(r):
		return operatorAt(text, i)
	case r == '*', r == '~' && (i == 0 || unicode.IsSpace(text[i-1])):
		return string(r)
	}
	return ""
}

// windowsShellToken is the token function of cmd. It also returns the variables of sh: cmd has
// another form for them.
func windowsShellToken(text []rune, i int, quoted bool) string {
	rest := string(text[i:])
	switch r := text[i]; {
	case r == '$':
		return posixVariable().FindString(rest)
	case r == '%':
		return windowsVariable().FindString(rest)
	case !quoted && r != ';' && isOperator(r):
		return operatorAt(text, i)
	}
	return ""
}

// posixShellForm returns the value of --exec that makes sh read the script.
func posixShellForm(script string) string {
	inner := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(script)
	return "'" + strings.ReplaceAll(`sh -c "`+inner+`"`, "'", `'\''`) + "'"
}

var variableOfSh = lazyregexp.New(`\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?`)

// windowsShellForm returns the value of --exec that makes cmd read the script. cmd joins its
// arguments, so the words need no other quotes.
func windowsShellForm(script string) string {
	script = variableOfSh().ReplaceAllString(script, "%$1%")
	return `"cmd /c ` + strings.ReplaceAll(script, `"`, `\"`) + `"`
}

var (
	shells       = []string{"sh", "bash", "dash", "zsh", "ash", "ksh", "mksh", "fish", "cmd", "powershell", "pwsh"}
	shellStarter = []string{"env", "busybox", "toybox", "sudo", "doas", "nice", "ionice", "nohup", "setsid", "stdbuf", "timeout", "time"}
)

// startsShell reports whether a command with these first words starts a shell, directly or
// through a program such as env.
func startsShell(words []string) bool {
	if len(words) == 0 {
		return false
	}
	isShell := func(word string) bool { return slices.Contains(shells, programName(word)) }
	return isShell(words[0]) || slices.Contains(shellStarter, programName(words[0])) && slices.ContainsFunc(words[1:], isShell)
}

// programName returns the name of the program at a path.
func programName(path string) string {
	name := path[strings.LastIndexAny(path, `/\`)+1:]
	return strings.TrimSuffix(strings.ToLower(name), ".exe")
}
