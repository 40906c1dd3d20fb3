package cli

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestShellWarning(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, tokens, form string }{
		{`curl http://127.0.0.1:9091/$PORT | tee x`, "$PORT and | are", `'sh -c "curl http://127.0.0.1:9091/$PORT | tee x"'`},
		{`echo $PORT`, "$PORT is", `'sh -c "echo $PORT"'`},
		{`echo ${PORT:-1} $PORT $PORT`, "${PORT:-1} and $PORT are", `'sh -c "echo ${PORT:-1} $PORT $PORT"'`},
		{`curl "http://h/?p=$PORT"`, "$PORT is", `'sh -c "curl \"http://h/?p=$PORT\""'`},
		{`curl http://h/?p=$PORT&q=1`, "$PORT is", `'sh -c "curl http://h/?p=$PORT\\&q=1"'`},
		{`curl 'http://h/?p='$PORT'&q=1'`, "$PORT is", `'sh -c "curl '\''http://h/?p='\''$PORT'\''&q=1'\''"'`},
		{`a > log 2>&1`, "> and >& are", `'sh -c "a > log 2>&1"'`},
		{`a && b || c; d &`, "&&, ||, ; and & are", `'sh -c "a && b || c; d &"'`},
		{`a<b`, "< is", `'sh -c "a<b"'`},
		{"a `b` $(c \"$(d)\")", "` and $(…) are", "'sh -c \"a `b` $(c \\\"$(d)\\\")\"'"},
		{`ls *.txt ~/x a~`, "* and ~ are", `'sh -c "ls *.txt ~/x a~"'`},
		{`a $1 $? $$ $`, "$1, $? and $$ are", `'sh -c "a $1 $? $$ $"'`},
		{`a b\ c "d \ \"e\"" $PORT`, "$PORT is", `'sh -c "a b\\ c \"d \\ \\\"e\\\"\" $PORT"'`},
		{`it\'s $PORT`, "$PORT is", `'sh -c "it\\'\''s $PORT"'`},
		{`curl $PORT | sh`, "$PORT and | are", `'sh -c "curl $PORT | sh"'`},
		{`env PORT=1 curl $PORT | sh`, "$PORT and | are", `'sh -c "env PORT=1 curl $PORT | sh"'`},
		{`$SHELL -c x`, "$SHELL is", `'sh -c "$SHELL -c x"'`},
		{"a\tb | c", "| is", ""},
		{"a\xff | c", "| is", ""},

		{`a`, "", ""},
		{`curl http://h/?a=1&b=2`, "", ""},
		{`a '$PORT | b > c & ; * ~ ` + "`'", "", ""},
		{`a "| > < & ; * ~ $1 $"`, "", ""},
		{`a \$PORT \| \> \& \* \~ \` + "`", "", ""},
		{`a "\$PORT"`, "", ""},
		{`a b~ x=~ $ "$" '$'`, "", ""},
		{`sh -c "echo $PORT | cat"`, "", ""},
		{`bash -c 'a' > b`, "", ""},
		{`/bin/dash x $PORT`, "", ""},
		{`busybox sh -c "echo $PORT"`, "", ""},
		{`/usr/bin/env -i A=b zsh -c "echo $PORT"`, "", ""},
		{`'C:\Windows\System32\CMD.EXE' /c a | b`, "", ""},
		{`pwsh -Command $PORT`, "", ""},
	} {
		want := ""
		if tt.tokens != "" {
			want = "--exec: no shell reads the command, so " + tt.tokens + " passed literally; to use a shell: "
			if tt.form == "" {
				want += "put the command into a script"
			} else {
				want += "--exec " + tt.form
			}
		}
		if got := findShellSyntax(tt.in, posixShellToken).warning(`\&`, posixShellForm); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.in, got, want)
		}
	}
}

func TestWindowsShellWarning(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`curl "http://h/%PORT%" | more`:  `%PORT% and | are passed literally; to use a shell: --exec "cmd /c curl \"http://h/%PORT%\" | more"`,
		`curl http://h/?p=${PORT}&q=$AB`: `${PORT} and $AB are passed literally; to use a shell: --exec "cmd /c curl http://h/?p=%PORT%^&q=%AB%"`,
		`a; b * ~ 50% 5% %1`:             "",
		`cmd /c echo %PORT%`:             "",
		`powershell.exe echo $PORT | b`:  "",
	} {
		if want != "" {
			want = "--exec: no shell reads the command, so " + want
		}
		if got := findShellSyntax(in, windowsShellToken).warning("^&", windowsShellForm); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", in, got, want)
		}
	}
}

// TestShellWarningRoundTrip pastes the form of the warning into a shell: it must not expand
// anything, and the command must be sh with the whole command line as its script.
func TestShellWarningRoundTrip(t *testing.T) {
	t.Parallel()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	shell := func(script string) string {
		cmd := exec.Command(sh, "-c", script)
		cmd.Env = append(cmd.Environ(), "PORT=8080", "HOME=/home/of/test")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	for _, tt := range []struct{ in, script, prints string }{
		{`echo $PORT | cat`, "", "8080\n"},
		{`echo "port $PORT" 'a $PORT' it\'s`, "", "port 8080 a $PORT it's\n"},
		{`printf '%s\n' "a\"b" \\ $PORT`, "", "a\"b\n\\\n8080\n"},
		{`echo ?p=$PORT&q=1`, `echo ?p=$PORT\&q=1`, "?p=8080&q=1\n"},
		{`echo '?p='$PORT'&q=1'`, "", "?p=8080&q=1\n"},
		{"echo `echo $PORT` $(echo \"'$PORT'\")", "", "8080 '8080'\n"},
		{`echo !x ~ && echo "\$PORT ${PORT}1"`, "", "!x /home/of/test\n$PORT 80801\n"},
		{`echo ''"" \$PORT '\' > /dev/null; echo done`, "", "done\n"},
	} {
		warning := findShellSyntax(tt.in, posixShellToken).warning(`\&`, posixShellForm)
		_, form, found := strings.Cut(warning, "to use a shell: ")
		if !found {
			t.Errorf("%s: no warning", tt.in)
			continue
		}
		args := strings.Split(shell("printf '%s\\000' "+form), "\x00")
		if len(args) != 3 || args[0] != "--exec" {
			t.Errorf("%s: the shell passes %q", form, args)
			continue
		}
		script := tt.script
		if script == "" {
			script = tt.in
		}
		words, err := splitCommand(args[1])
		if err != nil || !slices.Equal(words, []string{"sh", "-c", script}) {
			t.Errorf("%s: %q, %v, want the script %s", form, words, err, script)
			continue
		}
		if got := shell(words[2]); got != tt.prints {
			t.Errorf("%s prints %q, want %q", tt.in, got, tt.prints)
		}
		if again := shellWarning(args[1]); again != "" {
			t.Errorf("a warning for the form of the warning: %s", again)
		}
	}
}

func FuzzShellWarning(f *testing.F) {
	for _, s := range []string{`a $B | c`, `a '$b' "$c" \$d`, `a&b && c`, "a ${", "$(", "a\x00 > \xff", `a "%B%" & ~`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := splitCommand(s); err != nil {
			return
		}
		found := findShellSyntax(s, posixShellToken)
		if found.warning(`\&`, posixShellForm) != "" {
			script := strings.Join(found.parts, `\&`)
			outer, err := splitCommand(posixShellForm(script)) // single quotes have the same meaning as in sh
			if err != nil || len(outer) != 1 {
				t.Fatalf("%q: %q, %v", s, outer, err)
			}
			words, err := splitCommand(outer[0])
			if err != nil || !slices.Equal(words, []string{"sh", "-c", script}) {
				t.Errorf("%q: %q, %v", s, words, err)
			}
		}
		_ = findShellSyntax(s, windowsShellToken).warning("^&", windowsShellForm)
	})
}
