package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

// hookMain is a command for --exec:
//
//	hook tell WORD…    prints what it is told of the endpoint
//	hook fail N FILE   fails so many times, counted in the file, and then tells
//	hook hang          until it is killed, whatever the terminal says
func hookMain() {
	args := os.Args[1:]
	if ignoresPipe(os.Getppid()) {
		fmt.Println("SIGPIPE is ignored")
	}
	switch args[0] {
	case "fail":
		count(args[2], args[1])
	case "hang":
		interrupts := make(chan os.Signal, 1)
		signal.Notify(interrupts, os.Interrupt)
		fmt.Println("hanging")
		for range interrupts {
			fmt.Println("interrupted")
		}
	}
	env := func(name string) string { return os.Getenv("GOFORWARD_" + name) }
	fmt.Printf("%s %s:%s after %q, %s to %s by %s at %s %q\n", env("EVENT"), env("EXTERNAL_IP"), env("EXTERNAL_PORT"), env("PREVIOUS_PORT"),
		env("PROTOCOL"), env("INTERNAL_PORT"), env("BACKEND"), env("GATEWAY"), args[1:])
}

// ignoresPipe reports whether a process has what it starts ignore SIGPIPE too, where
// the system tells (proc(5), SigIgn).
func ignoresPipe(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // empty where it does not
	_, mask, _ := strings.Cut(string(text), "SigIgn:")
	mask, _, _ = strings.Cut(mask, "\n")
	signals, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	return err == nil && signals>>(syscall.SIGPIPE-1)&1 != 0
}

// count fails where the file is shorter than that, and makes it longer.
func count(path, most string) {
	n, err := strconv.Atoi(most)
	before, _ := os.ReadFile(path) // none is the first time
	if err == nil {
		err = os.WriteFile(path, append(before, '.'), 0o600)
	}
	switch {
	case err != nil:
		fmt.Println(err)
	case len(before) >= n:
		return
	}
	fmt.Fprintln(os.Stderr, "cannot just now")
	os.Exit(3)
}
