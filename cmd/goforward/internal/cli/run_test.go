package cli

import (
	"slices"
	"testing"
)

// TestInheritedEnvironment checks that a command does not get the endpoints of another
// goforward.
func TestInheritedEnvironment(t *testing.T) {
	for _, name := range []string{"GOFORWARD_EXTERNAL_PORT", "GOFORWARD_EXTERNAL_PORT2", "GOFORWARD_GATEWAY3", "GOFORWARD_SEED", "GOFORWARDX"} {
		t.Setenv(name, "inherited")
	}
	env := inheritedEnvironment()
	for variable, want := range map[string]bool{
		"GOFORWARD_EXTERNAL_PORT=inherited": false, "GOFORWARD_EXTERNAL_PORT2=inherited": false, "GOFORWARD_GATEWAY3=inherited": false,
		"GOFORWARD_SEED=inherited": true, "GOFORWARDX=inherited": true,
	} {
		if slices.Contains(env, variable) != want {
			t.Errorf("%s: kept: %v, want %v", variable, !want, want)
		}
	}
}
