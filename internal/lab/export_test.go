package lab

// NeedProgram makes a lab impossible where this program is not installed.
func NeedProgram(name string) { neededPrograms = append(neededPrograms, name) }

// WithoutRole is env for a test binary that shall make a world of its own.
var WithoutRole = withoutRole
