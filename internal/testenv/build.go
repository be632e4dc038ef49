package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build builds the binary into dir and returns its path. With race it has the race detector, which
// needs a C compiler. The module is the one of the working directory. A package of tests builds
// once, in TestMain: it takes seconds, with a warm cache of the toolchain.
func Build(dir string, race bool) (string, error) { return BuildAs(dir, race, "") }

// BuildAs is Build for a binary with another version number ("" = its own) and build tags. The tag
// "faults" makes a binary that a test can disturb.
func BuildAs(dir string, race bool, version string, tags ...string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "caravan")
	// As `make build` has it, so that the tests run what is released, apart from the version and the paths
	// of source files: with -trimpath all packages would be compiled a second time.
	args, cgo := []string{"build", "-o", bin}, "CGO_ENABLED=0"
	if race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	if len(tags) > 0 {
		args = append(args, "-tags", strings.Join(tags, ","))
	}
	if version != "" {
		args = append(args, "-ldflags", "-X main.version="+version)
	}
	cmd := exec.Command("go", append(args, "./cmd/caravan")...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), cgo)
	// The compiler's messages are the cause; "exit status 1" alone is not.
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return bin, nil
}

// ModuleRoot returns the folder of the module that contains the working directory, which is that of
// the package in a test. The go command says "/dev/null" outside of a module.
func ModuleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", fmt.Errorf("the working directory is not in a module")
	}
	return filepath.Dir(mod), nil
}
