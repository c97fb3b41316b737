// SPDX-License-Identifier: Apache-2.0

// Command lab brings the whole system up on this machine, shows the documented example
// working, and takes everything away again. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/metallb-egress/metallb-egress/e2e/lab"
	"github.com/metallb-egress/metallb-egress/hack/tools/cache"
)

const usage = `usage: lab [flags] COMMAND

  up                   build the lab, run the demo, leave the lab running
  demo                 run the demo again in the running lab
  down                 take the lab away
  kubectl ARGS…        kubectl as the lab's admin
  vtysh [ARGS…]        the ToR's vtysh
  exec NAME [ARGS…]    a command, or a shell, in a namespace: n1, pod-example-n1, out, tor, cp
  log NAME             where the log of a program is; without a name, all programs
  balancers            (of the lab itself) keep OVN's load balancers in step with the Services

flags:
`

func main() {
	flags := flag.NewFlagSet("lab", flag.ExitOnError)
	prefix := flags.String("prefix", "mle", "start of the names of the lab's network namespaces")
	root := flags.String("root", ".", "a folder inside the repository")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	_ = flags.Parse(os.Args[1:])
	if flags.NArg() == 0 {
		flags.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *prefix, *root, flags.Args())
	stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, prefix, start string, args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces: run it as root")
	}
	root, err := cache.RepoRoot(start)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	begin := time.Now()
	o := lab.Options{Root: root, Prefix: prefix, Programs: filepath.Dir(self), Log: func(format string, values ...any) {
		fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, values...))
	}}
	switch command, args := args[0], args[1:]; command {
	case "up":
		l, err := lab.Up(ctx, o)
		if err != nil {
			return err
		}
		err = demo(ctx, l)
		lookAround(l)
		return err
	case "down":
		return lab.Down(ctx, o)
	case "demo", "kubectl", "vtysh", "exec", "log", "balancers":
		l, err := lab.Open(o)
		if err != nil {
			return err
		}
		return inLab(ctx, l, command, args)
	default:
		return fmt.Errorf("no command %q; see lab -help", command)
	}
}

func inLab(ctx context.Context, l *lab.Lab, command string, args []string) error {
	switch command {
	case "demo":
		if err := l.Reset(ctx); err != nil {
			return err
		}
		return demo(ctx, l)
	case "kubectl":
		argv, err := l.Kubectl(args...)
		if err != nil {
			return err
		}
		return interactive(ctx, argv)
	case "vtysh":
		argv := l.Topology.VtyshCommand()
		return interactive(ctx, append(argv, args...))
	case "exec":
		if len(args) == 0 {
			return errors.New("exec: in which namespace?")
		}
		argv := []string{"ip", "netns", "exec", l.Prefix + "-" + args[0]}
		if len(args) == 1 {
			return interactive(ctx, append(argv, "bash"))
		}
		return interactive(ctx, append(argv, args[1:]...))
	case "log":
		if len(args) == 1 {
			fmt.Println(l.Processes.LogPath(args[0]))
			return nil
		}
		names, err := l.Processes.Names()
		for _, name := range names {
			fmt.Println(l.Processes.LogPath(name))
		}
		return err
	default:
		return l.RunBalancers(ctx)
	}
}

// demo runs the documented example and prints the report.
func demo(ctx context.Context, l *lab.Lab) error {
	fmt.Println("\nThe documented example, line by line:")
	passed, failed := 0, 0
	err := l.Demo(ctx, func(line lab.Line, seen string, err error, took time.Duration) {
		verdict, detail := "ok  ", seen
		passed++
		if err != nil {
			passed--
			failed++
			verdict, detail = "FAIL", strings.ReplaceAll(err.Error(), "\n", "\n            ")
		}
		fmt.Printf("%s %3s  %s (%.1f s)\n            %s\n", verdict, line.Number, line.Claim, took.Seconds(), detail)
	})
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	return err
}

func lookAround(l *lab.Lab) {
	command := filepath.Join("bin", "lab")
	if l.Prefix != "mle" {
		command += " -prefix " + l.Prefix
	}
	fmt.Printf(`
The lab is running. To look around:
  %[1]s kubectl get esvc,eassign,enode -A
  %[1]s vtysh -c 'show bgp ipv4 unicast'
  %[1]s exec pod-example-n1 curl http://198.51.100.7/   # the source address that the outside sees
  %[1]s exec out curl http://172.19.0.100:8080/         # the service, from outside
  %[1]s log                                             # where the logs are
  make lab-down                                          # take it away
`, command)
}

func interactive(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
