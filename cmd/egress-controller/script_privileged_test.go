// SPDX-License-Identifier: Apache-2.0

//go:build privileged

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"rsc.io/script"
	"rsc.io/script/scripttest"
)

// TestScripts plays every script in testdata/script against a real API server, with the controller in
// this process and fake speakers. The commands are those of newEngine; "help" lists them. The log
// of -v is the transcript.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			playScript(t, file)
		})
	}
}

func playScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	archive := txtar.Parse(text)
	if err := readable(string(archive.Comment)); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	state, err := script.NewState(t.Context(), t.TempDir(), []string{})
	if err != nil {
		t.Fatal(err)
	}
	if err := state.ExtractFiles(archive); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.situation())
		}
	})
	scripttest.Run(t, newEngine(w), state, file, bytes.NewReader(archive.Comment))
}

// readable holds scripts to their form: they begin with what they promise, and end with quiet.
func readable(text string) error {
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.TrimSpace(line) == "" })
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "# ") {
		return errors.New("a script begins with a comment that says what is promised, and why")
	}
	if lines[len(lines)-1] != "quiet" {
		return errors.New("the last command of a script is quiet")
	}
	return nil
}

// newEngine has the commands of the scripts.
func newEngine(w *world) *script.Engine {
	engine := &script.Engine{Cmds: map[string]script.Cmd{"help": script.Help(), "skip": scripttest.Skip()}, Conds: scripttest.DefaultConds()}
	act := func(name, args, summary string, do func(context.Context, ...string) error) {
		engine.Cmds[name] = script.Command(script.CmdUsage{Summary: summary, Args: args},
			func(s *script.State, args ...string) (script.WaitFunc, error) {
				return nil, usage(do(s.Context(), args...))
			})
	}
	alone := func(do func(context.Context) error) func(context.Context, ...string) error {
		return func(ctx context.Context, args ...string) error {
			if len(args) > 0 {
				return errUsage
			}
			return do(ctx)
		}
	}
	act("controller", "start [FLAG]...|stop|restart|second|withdraw|kill|disconnect", "the controller's life, and its connections", w.control)
	act("failing", "METHOD URI-PART CODE|reset|lost|hang | watches expire | none", "fail the controller's requests from now on", w.failing)
	act("node", "NODE [zone=Z|hostname=H|KEY=VALUE|KEY-|WORD]...", "make or change a Node, with a speaker", w.makeNode)
	act("speaker", "NODE [WORD]...", "how a node's speaker behaves from now on", w.makeSpeaker)
	act("service", "ns/s [IP]... [type=T] [local] [pool=P] [key=K] | delete", "make or change a Service", w.makeService)
	act("endpoint", "ns/s IP [node=N] [notserving|terminating|gone]", "make or change an endpoint", w.makeEndpoint)
	act("egress", "ns/s [selector=K=V] [network=N] [by=Network] [policy=P] | delete", "make or change an EgressService", w.makeEgress)
	act("patch", "KIND NAME JSON", "change any object, as a user may", w.patch)
	act("delete", "KIND NAME", "delete any object, as a user may", w.remove)
	act("remember", "", "remember all decisions, for unchanged", alone(w.remember))
	act("tally", "", "count writes from here on, for wrote", alone(w.tally))
	act("settled", "", "wait until the controller has worked through everything", alone(w.settled))
	act("quiet", "", "force one more sync and see that it writes nothing, and that all objects agree", alone(w.quiet))
	engine.Cmds["apply"] = script.Command(script.CmdUsage{Summary: "create or change the object in a file", Args: "FILE"}, w.apply)
	for name, c := range claims {
		act(name, c.args, "wait until it is true: "+c.summary, func(ctx context.Context, args ...string) error {
			return poll(ctx, "it is not so", func(ctx context.Context) error { return c.check(w, ctx, args...) })
		})
	}
	act("stays", "CLAIM...", "it is still true after the controller has worked through everything", w.stays)
	return engine
}

func usage(err error) error {
	if errors.Is(err, errUsage) {
		return script.ErrUsage
	}
	return err
}

// stays looks once, after the controller has had its say.
func (w *world) stays(ctx context.Context, args ...string) error {
	if len(args) == 0 {
		return errUsage
	}
	c, known := claims[args[0]]
	if !known {
		return fmt.Errorf("what is %q?", args[0])
	}
	if err := w.looked(ctx); err != nil {
		return err
	}
	return c.check(w, ctx, args[1:]...)
}
