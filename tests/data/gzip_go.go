package main
import ("compress/gzip";"io";"os";"strconv")
func main(){l,_:=strconv.Atoi(os.Args[1]);w,_:=gzip.NewWriterLevel(os.Stdout,l);io.Copy(w,os.Stdin);w.Close()}
