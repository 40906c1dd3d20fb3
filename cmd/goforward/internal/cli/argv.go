package cli

import (
	"errors"
	"strings"
)

// splitCommand reads a command line as words apart by spaces, tabs or newlines.
// Between single quotes all stands for itself; between double quotes a backslash
// takes the meaning of a double quote or backslash behind it, and elsewhere that
// of any character. There is no shell: no variables, no patterns, no pipes.
func splitCommand(s string) ([]string, error) {
	words := commandWords{}
	for _, r := range s {
		words.add(r)
	}
	if err := words.end(); err != nil {
		return nil, err
	}
	if len(words.done) == 0 || words.done[0] == "" {
		return nil, errors.New("there is no command")
	}
	return words.done, nil
}

// commandWords are the words of a command line, as far as it is read.
type commandWords struct {
	done    []string
	word    strings.Builder
	within  bool // a word, which may be empty
	quote   rune // that is open, or 0
	escaped bool // by a backslash
}

// add reads one character.
func (w *commandWords) add(r rune) {
	switch {
	case w.escaped:
		w.escaped = false
		if w.quote == '"' && r != '"' && r != '\\' {
			w.word.WriteByte('\\')
		}
		w.word.WriteRune(r)
	case r == '\\' && w.quote != '\'':
		w.escaped, w.within = true, true
	case r == w.quote:
		w.quote = 0
	case w.quote == 0 && (r == '\'' || r == '"'):
		w.quote, w.within = r, true
	case w.quote == 0 && strings.ContainsRune(" \t\n\r", r):
		w.next()
	default:
		w.word.WriteRune(r)
		w.within = true
	}
}

// next ends a word, if there is one.
func (w *commandWords) next() {
	if w.within {
		w.done = append(w.done, w.word.String())
	}
	w.word.Reset()
	w.within = false
}

// end ends the last word.
func (w *commandWords) end() error {
	switch {
	case w.quote != 0:
		return errors.New("a quote " + string(w.quote) + " is not closed")
	case w.escaped:
		return errors.New("there is nothing behind the last backslash")
	}
	w.next()
	return nil
}
